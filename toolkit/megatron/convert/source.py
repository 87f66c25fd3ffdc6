"""Finds an iteration's folder, the model's shape and the tokenizer in a checkpoint artifact."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import ToolkitError
from toolkit.megatron import checkpoint
from toolkit.megatron.config import TrainedModel

TOKENIZER = "tokenizer"


@dataclass(frozen=True, slots=True)
class Source:
    """One iteration of a Megatron checkpoint."""

    folder: Path
    """The iteration's own folder, ``iter_0000200``."""
    iteration: int
    model: TrainedModel
    tokenizer: Path


def open_checkpoint(root: Path, iteration: int | None) -> Source:
    """The latest iteration of the checkpoint in ``root``, or the given one.

    Raises:
        ToolkitError: a part is missing or damaged, or there is no such iteration.
    """
    model = checkpoint.read_model(root)
    wanted = checkpoint.latest_iteration(root) if iteration is None else iteration
    folder = checkpoint.iteration_folder(root, wanted)
    if not folder.is_dir():
        there = ", ".join(map(str, checkpoint.iterations(root))) or "none"
        raise ToolkitError(
            f"no iteration {wanted} in this checkpoint", where=str(root), hint=f"there: {there}"
        )
    if (folder / checkpoint.FILES).is_file() and (wrong := checkpoint.damage(folder)):
        raise ToolkitError(f"the checkpoint is damaged: {wrong}", where=str(folder))
    return Source(folder, wanted, model, root / TOKENIZER)
