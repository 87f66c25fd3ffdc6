import subprocess
import sys
from pathlib import Path

import pytest

TOOLKIT = (sys.executable, "-c", "from toolkit.cli import main; main()")


def toolkit(*words: str) -> tuple[int, str]:
    done = subprocess.run([*TOOLKIT, *words], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_a_machine_is_looked_at_by_two_ranks_and_nothing_stays(tmp_path: Path) -> None:
    code, said = toolkit("preflight", "--run-root", str(tmp_path), "--min-busbw-within", "9999")
    assert code == 86 and "where 9999 are wanted" in " ".join(said.split())
    assert all(word in said for word in ("write speed", "busbw within", "torch"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    code, said = toolkit("preflight", "--run-root", str(tmp_path / "none"))
    assert code == 2 and "no such folder" in said and "--run-root" in said


def test_a_cluster_that_is_unknown_is_told() -> None:
    code, said = toolkit("preflight", "--cluster", "dgx-h10")
    assert code == 2 and "dgx-h100" in said
