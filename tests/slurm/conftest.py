"""A real Slurm for tests: the one that answers here, or four small nodes on this machine."""

import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs import DATA, ROOT, TRAINING, lay_out, toolkit, weights

LAB = Path(__file__).resolve().parents[3] / "shared" / "lab"


def answers() -> bool:
    if shutil.which("scontrol") is None:
        return False
    done = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, check=False)
    return "UP" in done.stdout


def add_pyxis(folder: Path) -> None:
    """Teach the lab Pyxis's options, by a plugin that shows each task what it was given."""
    if not Path("/usr/include/slurm/spank.h").is_file():
        install = ["apt-get", "install", "-y", "--no-install-recommends", "libslurm-dev", "gcc"]
        subprocess.run(install, capture_output=True, check=False)
    plugin = folder / "etc" / "pyxis.so"
    build = ["gcc", "-shared", "-fPIC", "-o", str(plugin), str(LAB / "spank_container.c")]
    if subprocess.run(build, capture_output=True, check=False).returncode == 0:
        (folder / "etc" / "plugstack.conf").write_text(f"required {plugin}\n")


@pytest.fixture(scope="session")
def slurm() -> Iterator[None]:
    """Slurm's commands work, with a partition like that of configs/clusters/lab.yaml."""
    if answers():
        yield
        return
    if os.geteuid() != 0 or not (LAB / "slurm-up.sh").is_file():
        pytest.skip(f"no Slurm answers here, and {LAB}/slurm-up.sh can't start one (it needs root)")
    base = Path(tempfile.mkdtemp(prefix="toolkit-slurm-"))
    base.chmod(0o755)  # munged wants its socket where everybody can go
    folder = base / "lab"
    number = random.randrange(1, 250)
    own = {
        "SLURM_LAB_BRIDGE": f"tklab{number}",
        "SLURM_LAB_NET": f"10.78.{number}",
        "SLURM_LAB_PORT": str(17_000 + 8 * number),
    }
    command = [str(LAB / "slurm-up.sh"), "-d", str(folder), "-n", "4", "-g", "4"]
    up = subprocess.run(
        command, env={**os.environ, **own}, stdout=subprocess.DEVNULL, check=False, timeout=600
    )
    if up.returncode:
        shutil.rmtree(base, ignore_errors=True)
        pytest.skip("slurm-up.sh could not start a cluster here; it says why above")
    add_pyxis(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "etc" / "slurm.conf"))
        yield
    subprocess.run([str(LAB / "slurm-down.sh"), "-d", str(folder)], check=False)
    shutil.rmtree(base, ignore_errors=True)


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
