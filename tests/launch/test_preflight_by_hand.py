import subprocess
import sys
from pathlib import Path

import pytest

from toolkit.errors import ToolkitError
from toolkit.launch import slurm
from toolkit.launch.preflight_by_hand import on_cluster

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


def test_floors_given_by_hand_win_over_the_profile_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts = []

    def submit(command: list[str]) -> str:
        scripts.append(Path(command[-1]).read_text())
        raise ToolkitError("enough")

    monkeypatch.setattr(slurm, "submit", submit)
    (tmp_path / "c.yaml").write_text(
        "scheduler: slurm\nnode: {cpus: 4, gpus: 2}\ntime_limit: '1:00:00'\n"
        "preflight: {enabled: false, min_busbw_within: 3, min_busbw_across: 4}\n"
    )
    with pytest.raises(ToolkitError, match="enough"):
        on_cluster(str(tmp_path / "c.yaml"), 2, tmp_path, {"min_busbw_within": 99}, lambda *_: None)
    assert '"min_busbw_within": 99, "min_busbw_across": 4' in scripts[0]
