from pathlib import Path

import pytest

from toolkit.posttrain import checkpoints


def save(folder: Path, step: int, sealed: bool = True) -> Path:
    path = folder / f"checkpoint-{step}"
    (path / "sub").mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"weights")
    (path / "sub" / "state.json").write_text("{}")
    if sealed:
        checkpoints.seal(path)
    return path


def test_the_newest_whole_checkpoint_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert checkpoints.latest(tmp_path / "nowhere") is None
    for step in (5, 20, 100):
        save(tmp_path, step)
    broken = save(tmp_path, 200, sealed=False)
    assert checkpoints.latest(tmp_path) == tmp_path / "checkpoint-100"
    assert f"{broken} is not whole" in caplog.text


@pytest.mark.parametrize("damage", ["truncate", "delete", "seal"])
def test_damage_is_noticed(tmp_path: Path, damage: str) -> None:
    whole, broken = save(tmp_path, 1), save(tmp_path, 2)
    assert checkpoints.is_whole(broken)
    if damage == "truncate":
        (broken / "model.safetensors").write_bytes(b"weig")
    elif damage == "delete":
        (broken / "sub" / "state.json").unlink()
    else:
        (broken / checkpoints.SEAL).write_text('{"fi')
    assert not checkpoints.is_whole(broken)
    assert checkpoints.latest(tmp_path) == whole
    checkpoints.clear_broken(tmp_path)
    assert not broken.exists()
    assert whole.exists()


def test_old_ones_are_deleted_by_step_not_by_name(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        save(tmp_path, step)
    (tmp_path / "rows").mkdir()
    checkpoints.keep_last(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-100", "rows"]
