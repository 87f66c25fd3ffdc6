"""Finds an iteration's folder, the model's shape and the tokenizer in a checkpoint artifact."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from toolkit.errors import ToolkitError
from toolkit.megatron.config import TrainedModel

TRACKER = "latest_checkpointed_iteration.txt"
MODEL = "model.json"
TOKENIZER = "tokenizer"


@dataclass(frozen=True, slots=True)
class Source:
    """One iteration of a Megatron checkpoint."""

    folder: Path
    """The iteration's own folder, ``iter_0000200``."""
    iteration: int
    """0 for Megatron-LM's ``release``."""
    model: TrainedModel
    tokenizer: Path


def open_checkpoint(folder: Path, iteration: int | None) -> Source:
    """The latest iteration of the checkpoint in ``folder``, or the given one.

    Raises:
        ToolkitError: a part is missing or not readable, or no such iteration.
    """
    name = f"iter_{iteration:07d}" if iteration is not None else _latest(folder)
    if not (folder / name).is_dir():
        found = ", ".join(sorted(p.name for p in folder.glob("iter_*"))) or "no iteration at all"
        raise ToolkitError(f"no iteration {name} here", where=str(folder), hint=f"there is {found}")
    return Source(
        folder=folder / name,
        iteration=0 if name == "release" else int(name.removeprefix("iter_")),
        model=_model(folder / MODEL),
        tokenizer=folder / TOKENIZER,
    )


def _latest(folder: Path) -> str:
    tracker = folder / TRACKER
    try:
        text = tracker.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ToolkitError(
            f"can't read which iteration is the latest: {error.strerror}", where=str(tracker)
        ) from error
    if text != "release" and not text.isdecimal():
        raise ToolkitError(f"{text!r} is no iteration", where=str(tracker))
    return text if text == "release" else f"iter_{int(text):07d}"


def _model(path: Path) -> TrainedModel:
    try:
        return TrainedModel.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ToolkitError(
            f"can't read the model's shape: {error.strerror}",
            where=str(path),
            hint="pretrain writes this file; beside a checkpoint made elsewhere, write the keys "
            "of a pipeline's model: section into it, with vocab_size and padded_vocab_size",
        ) from error
    except ValidationError as error:
        raise ToolkitError(f"not the description of a model: {error}", where=str(path)) from error
