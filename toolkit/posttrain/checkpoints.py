"""Checkpoints of ``transformers.Trainer`` that count only when they are whole.

The Trainer writes a checkpoint file by file. Here each gets a seal at the end, with the sizes of
its files; without a seal that fits, a checkpoint is a crash's leftover.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from toolkit.artifacts import sync, walk, write_json

logger = logging.getLogger(__name__)

SEAL = "complete.json"
NAME = re.compile(r"checkpoint-(\d+)")


def seal(checkpoint: Path) -> None:
    """Flush a finished checkpoint to disk and mark it as whole."""
    files = [path for path in walk(checkpoint) if path.name != SEAL]
    for path in files:
        sync(path)
    sizes = {path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in files}
    write_json(checkpoint / SEAL, {"files": sizes})
    sync(checkpoint)


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint has a seal, and every file has the size it had then."""
    try:
        sizes = json.loads((checkpoint / SEAL).read_text(encoding="utf-8"))["files"]
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint in a folder; those that are not whole are logged."""
    for _, checkpoint in _by_step(folder):
        if is_whole(checkpoint):
            return checkpoint
        logger.warning("%s is not whole (a save that was cut off); left aside", checkpoint)
    return None


def clear_broken(folder: Path) -> None:
    """Delete the checkpoints that are not whole, so that none is mixed with a later save."""
    for _, checkpoint in _by_step(folder):
        if not is_whole(checkpoint):
            shutil.rmtree(checkpoint)


def keep_last(folder: Path, count: int) -> None:
    """Delete all but the newest ``count`` checkpoints."""
    for _, checkpoint in list(_by_step(folder))[count:]:
        shutil.rmtree(checkpoint)


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which a checkpoint was saved."""
    match = NAME.fullmatch(checkpoint.name)
    assert match, checkpoint
    return int(match[1])


def _by_step(folder: Path) -> Iterator[tuple[int, Path]]:
    """Checkpoints, newest first."""
    if folder.is_dir():
        found = [path for path in folder.iterdir() if NAME.fullmatch(path.name)]
        yield from sorted(((step_of(path), path) for path in found), reverse=True)
