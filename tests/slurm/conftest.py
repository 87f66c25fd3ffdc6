"""A real Slurm for tests: the one that answers here, or four small nodes on this machine."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs import DATA, ROOT, TRAINING, lay_out, toolkit, weights
from lab import lab


def answers() -> bool:
    if shutil.which("scontrol") is None:
        return False
    done = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, check=False)
    return "UP" in done.stdout


@pytest.fixture(scope="session")
def slurm() -> Iterator[None]:
    """Slurm's commands work, with a partition like that of configs/clusters/lab.yaml."""
    if answers():
        yield
        return
    with lab():
        yield


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return lay_out(tmp_path, DATA)


@pytest.fixture(scope="session")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The weights that an undisturbed local run ends with."""
    place = lay_out(tmp_path_factory.mktemp("local"), TRAINING)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("PYTHONPATH", str(ROOT))
        toolkit("run", "p.yaml")
    found = weights(place / "runs" / "training")
    assert len(found) > 1
    return found


@pytest.fixture
def trained(folder: Path, expected: dict[str, str]) -> dict[str, str]:
    """The training's pipeline in the test's folder, and the weights that it must end with."""
    lay_out(folder, TRAINING)
    return expected
