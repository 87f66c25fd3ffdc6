"""A Slurm of its own for tests: four small nodes on this machine."""

import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

LAB = Path(__file__).resolve().parents[3] / "shared" / "lab"


def add_pyxis(folder: Path) -> None:
    """Teach the lab Pyxis's options, by a plugin that shows each task what it was given."""
    if not Path("/usr/include/slurm/spank.h").is_file():
        install = ["apt-get", "install", "-y", "--no-install-recommends", "libslurm-dev", "gcc"]
        subprocess.run(install, capture_output=True, check=False)
    plugin = folder / "etc" / "pyxis.so"
    build = ["gcc", "-shared", "-fPIC", "-o", str(plugin), str(LAB / "spank_container.c")]
    if subprocess.run(build, capture_output=True, check=False).returncode == 0:
        (folder / "etc" / "plugstack.conf").write_text(f"required {plugin}\n")


@contextmanager
def lab(*options: str, conf: str = "") -> Iterator[Path]:
    """A Slurm of four small nodes of its own, with the commands pointed at it; its folder.

    Args:
        options: more of ``slurm-up.sh``'s: ``-a`` for accounting.
        conf: lines for the end of ``slurm.conf``.
    """
    if os.geteuid() != 0 or not (LAB / "slurm-up.sh").is_file():
        pytest.skip(f"{LAB}/slurm-up.sh can't start a Slurm here (it needs root)")
    base = Path(tempfile.mkdtemp(prefix="toolkit-slurm-"))
    base.chmod(0o755)  # munged wants its socket where everybody can go
    folder = base / "lab"
    if not any(_start(folder, n, options, conf) for n in random.sample(range(1, 250), 3)):
        shutil.rmtree(base, ignore_errors=True)
        pytest.skip("slurm-up.sh could not start a cluster here; it says why above")
    add_pyxis(folder)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLURM_CONF", str(folder / "etc" / "slurm.conf"))
            yield folder
    finally:
        subprocess.run([str(LAB / "slurm-down.sh"), "-d", str(folder)], check=False)
        shutil.rmtree(base, ignore_errors=True)


def _start(folder: Path, number: int, options: Sequence[str], conf: str) -> bool:
    """Start a lab with names and ports of its own; False: another one has them, or it can't be."""
    own = {
        "SLURM_LAB_BRIDGE": f"tklab{number}",
        "SLURM_LAB_NET": f"10.78.{number}",
        "SLURM_LAB_PORT": str(17_000 + 8 * number),
        "SLURM_LAB_CONF": conf,
    }
    command = [str(LAB / "slurm-up.sh"), "-d", str(folder), "-n", "4", "-g", "4", *options]
    environment = {**os.environ, **own}
    up = subprocess.run(
        command, env=environment, stdout=subprocess.DEVNULL, check=False, timeout=600
    )
    return up.returncode == 0
