"""CI must not pass because the tests that need a scheduler were skipped."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TESTS = """
import pytest

@pytest.mark.slurm
def test_marked():
    pytest.skip("no sbatch here")

@pytest.mark.slurm
@pytest.mark.skipif(True, reason="no sbatch here")
def test_marked_by_condition():
    pass

def test_unmarked():
    pytest.skip("not here")
"""


@pytest.mark.parametrize(
    ("required", "code", "summary"),
    [("", 0, "3 skipped"), ("k8s", 0, "3 skipped"), ("slurm k8s", 1, "1 skipped")],
)
def test_a_required_test_may_not_be_skipped(
    tmp_path: Path, required: str, code: int, summary: str
) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "conftest", "-c", "pyproject.toml"]
    done = subprocess.run(
        [*command, "--rootdir", str(tmp_path), str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests"), "TOOLKIT_REQUIRE": required},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code, done.stdout
    assert summary in done.stdout.splitlines()[-1]
    if code:
        assert "TOOLKIT_REQUIRE=slurm k8s" in done.stdout
        assert "no sbatch here" in done.stdout
