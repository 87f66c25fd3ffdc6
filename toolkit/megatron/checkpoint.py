"""Checkpoint folders: Megatron's layout, written so that a crash at any moment leaves a whole one.

``iter_0000200/`` holds one checkpoint in megatron-core's distributed format,
``latest_checkpointed_iteration.txt`` names the newest, ``model.json`` describes the model. A
checkpoint is written under another name and renamed when every rank has finished: a folder called
``iter_...`` is complete. ``files.json`` in it has the size of each file, to find later damage.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from toolkit.artifacts import sync, walk, write_json, write_text
from toolkit.errors import ToolkitError
from toolkit.megatron.config import TrainedModel

logger = logging.getLogger(__name__)

TRACKER = "latest_checkpointed_iteration.txt"
MODEL = "model.json"
FILES = "files.json"
SAVING = ".saving"
REMOVING = ".removing"


def iteration_folder(root: Path, iteration: int) -> Path:
    """``root/iter_0000200``."""
    return root / f"iter_{iteration:07d}"


def iterations(root: Path) -> list[int]:
    """The complete checkpoints, oldest first."""
    names = (re.fullmatch(r"iter_(\d{7,})", p.name) for p in root.glob("iter_*"))
    return sorted(int(name[1]) for name in names if name)


def latest_iteration(root: Path) -> int:
    """The iteration that the tracker file names.

    Raises:
        ToolkitError: there is no checkpoint, or the file says something else.
    """
    path = root / TRACKER
    try:
        return int(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ToolkitError(f"no checkpoint here (no {TRACKER})", where=str(root)) from error
    except ValueError as error:
        raise ToolkitError("does not name an iteration", where=str(path)) from error


def read_model(root: Path) -> TrainedModel:
    """The model of a checkpoint, from its ``model.json``.

    Raises:
        ToolkitError: the file is missing or does not describe a model.
    """
    path = root / MODEL
    try:
        return TrainedModel.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ToolkitError(
            f"no {MODEL}: it says what model the checkpoint is of",
            where=str(root),
            hint="checkpoints of other programs come in through an import stage",
        ) from error
    except ValidationError as error:
        raise ToolkitError(f"not a description of a model: {error}", where=str(path)) from error


def write_model(root: Path, model: TrainedModel) -> None:
    """Write ``model.json``."""
    write_json(root / MODEL, model.model_dump())


ADJUSTABLE = frozenset(
    (
        "padded_vocab_size",
        "make_vocab_size_divisible_by",
        "hidden_dropout",
        "attention_dropout",
        "init_method_std",
    )
)
"""What may differ between a checkpoint and the model that takes it: no weight depends on it."""


def check_model(root: Path, wanted: TrainedModel) -> None:
    """Refuse a checkpoint of another model.

    Raises:
        ToolkitError: naming each key that differs, with both values.
    """
    found = read_model(root)
    different = [
        f"  {name}: {ours!r} here, {theirs!r} in the checkpoint"
        for (name, ours), (_, theirs) in zip(_shape(wanted), _shape(found), strict=True)
        if ours != theirs
    ]
    if different:
        raise ToolkitError(
            "the checkpoint is of another model:\n" + "\n".join(different),
            where=str(root),
            hint="give the model these values, or start from random weights in a new run",
        )


def _shape(model: TrainedModel) -> Iterator[tuple[str, object]]:
    """The keys that weights depend on, defaults filled in."""
    derived = {
        "num_query_groups": model.query_groups,
        "ffn_hidden_size": model.ffn_size,
        "kv_channels": model.head_size,
    }
    for name, value in model.model_dump().items():
        if name not in ADJUSTABLE:
            yield name, derived.get(name, value)


def begin(root: Path, iteration: int) -> Path:
    """An empty folder to write the checkpoint of ``iteration`` into. Rank 0 alone calls this."""
    for leftover in (*root.glob(f"*{SAVING}"), *root.glob(f"*{REMOVING}")):
        shutil.rmtree(leftover)
    folder = saving_folder(root, iteration)
    folder.mkdir(parents=True)
    return folder


def saving_folder(root: Path, iteration: int) -> Path:
    """Where the checkpoint of ``iteration`` is while it is being written."""
    target = iteration_folder(root, iteration)
    return target.with_name(f"{target.name}{SAVING}")


def commit(root: Path, iteration: int, keep_last: int) -> Path:
    """Make what was written the newest checkpoint, and remove old ones. Rank 0 alone calls this.

    Returns:
        The checkpoint's folder.
    """
    folder, target = saving_folder(root, iteration), iteration_folder(root, iteration)
    sizes = {p.relative_to(folder).as_posix(): p.stat().st_size for p in walk(folder)}
    write_json(folder / FILES, sizes)
    for path in (*walk(folder), folder):
        sync(path)
    if target.exists():  # from a run that went on from an older one, this one being damaged
        _remove(target)
    folder.rename(target)
    sync(root)
    write_text(root / TRACKER, str(iteration))
    for old in iterations(root)[:-keep_last]:
        _remove(iteration_folder(root, old))
    return target


def _remove(folder: Path) -> None:
    """Remove a checkpoint; from its first moment on it no longer counts as one."""
    doomed = folder.with_name(f"{folder.name}{REMOVING}")
    if doomed.exists():
        shutil.rmtree(doomed)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def damage(folder: Path) -> str | None:
    """What is wrong with the files of a checkpoint; None where all are there in full size."""
    record = folder / FILES
    try:
        sizes: dict[str, int] = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"{FILES} can't be read ({error})"
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes, {size:,} were written"
    return None


def discard_newer(root: Path, iteration: int) -> None:
    """Remove the checkpoints after the one that is gone on from. Rank 0 alone calls this.

    They are damaged, or ``newest_whole`` would have taken one; left there, they would be counted
    as the newest when old ones are removed.
    """
    for number in iterations(root):
        if number > iteration:
            _remove(iteration_folder(root, number))


def newest_whole(root: Path) -> int | None:
    """The newest checkpoint to go on from; damaged ones are passed over, loudly. None: none."""
    for iteration in reversed(iterations(root)):
        folder = iteration_folder(root, iteration)
        wrong = damage(folder)
        if wrong is None:
            return iteration
        logger.warning("%s is damaged: %s. Going back to an older one.", folder, wrong)
    return None
