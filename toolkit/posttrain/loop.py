"""Ties the loop of ``transformers.Trainer`` to the stage: metrics, signals, checkpoints."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from toolkit.artifacts import write_json
from toolkit.context import StageContext
from toolkit.errors import StageError, StageInterrupted
from toolkit.posttrain import checkpoints
from toolkit.tracking import read_metrics

logger = logging.getLogger(__name__)

Metrics = dict[str, float]
Watch = Callable[[int, Mapping[str, float]], None]
"""Takes each logged step and its metrics, on every rank; may raise to end the training."""
BEFORE = "before.json"
RENAMED = {"learning_rate": "lr"}
NOT_LOGGED = ("runtime", "_per_second", "total_flos", "train_loss", "preparation_time")
FAILED_WRITES = ("PytorchStreamWriter", "inline_container", "No space left", "File too large")
"""What torch and safetensors say when a file can't be written; neither raises an OSError."""


class StageCallback(TrainerCallback):  # type: ignore[misc]  # transformers is not followed
    """Ties the Trainer's loop to the stage: metrics, progress, signals, whole checkpoints.

    Args:
        context: the stage.
        keep_last: checkpoints to keep.
        watch: sees each step's metrics.
    """

    def __init__(
        self,
        context: StageContext,
        keep_last: int,
        watch: Watch | None = None,
    ) -> None:
        self.context, self.keep_last, self.watch = context, keep_last, watch
        self.loss: float | None = None
        """The training loss logged last."""

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        """Show progress; when asked to stop, save and end."""
        self.context.alive()
        if self.context.rank == 0:
            shown = {} if self.loss is None else {"loss": self.loss}
            self.context.progress(state.global_step, state.max_steps, unit="iterations", **shown)
        if _any_rank(self.context.stop.requested, args.device):
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False  # there may be little time left

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float],
        **_: Any,
    ) -> None:
        """Pass the metrics on.

        Raises:
            StageError: the loss is not finite.
        """
        metrics = _named(logs)
        loss = metrics.get("loss")
        if loss is not None and not math.isfinite(loss):
            raise StageError(
                f"the loss is {loss} at step {state.global_step}",
                hint="lower learning_rate, or set precision: fp32",
            )
        self.loss = self.loss if loss is None else loss
        if self.context.rank == 0 and metrics:
            self.context.tracker.log(state.global_step, metrics)
        if self.watch is not None:
            self.watch(state.global_step, metrics)

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        """A batch of an evaluation is done; before the first step nothing is watched."""
        if state.global_step > 0:
            self.context.alive()

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float],
        **_: Any,
    ) -> None:
        """Keep the metrics before the first step, for this attempt and later ones."""
        if self.context.rank == 0 and state.global_step == 0:
            write_json(self.context.work / BEFORE, _plain(metrics))

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        """Seal the checkpoint once every rank has written its part."""
        self.context.alive()
        _wait_for_all()
        if self.context.rank == 0:
            folder = Path(args.output_dir)
            checkpoints.seal(folder / f"checkpoint-{state.global_step}")
            checkpoints.keep_last(folder, self.keep_last)


def _wait_for_all() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def _any_rank(flag: bool, device: torch.device) -> bool:
    """Whether any rank says so; all ranks must ask. A signal may reach them at different steps."""
    if not torch.distributed.is_initialized():
        return flag
    said = torch.tensor(int(flag), device=device)
    torch.distributed.all_reduce(said, op=torch.distributed.ReduceOp.MAX)
    return bool(said.item())


def _named(logs: Mapping[str, float]) -> Metrics:
    """The Trainer's metrics under the names of the other stages."""
    named = {}
    for key, value in logs.items():
        if not any(part in key for part in NOT_LOGGED):
            name = key.removeprefix("eval_")
            named[RENAMED.get(name, name) if name == key else f"validation_{name}"] = value
    return named if len(named) > 1 else {}  # the last row of a training has but the epoch


def train(trainer: Trainer, context: StageContext, watch: Watch | None = None) -> None:
    """Train to the end, from the last whole checkpoint on.

    Args:
        watch: the callback's, which is shown again what it saw up to that checkpoint.

    Raises:
        StageInterrupted: a signal came; a checkpoint of that step is saved.
    """
    found = checkpoints.latest(context.work)
    _wait_for_all()
    if context.rank == 0:
        checkpoints.clear_broken(context.work)
        context.tracker.rewind(checkpoints.step_of(found) if found else -1)
    _wait_for_all()
    if watch is not None:
        for row in read_metrics(context.folder):
            watch(row["step"], row)
    # Not by `evaluate`: called before `train`, it leaves the model without DDP, and every rank
    # trains on its own.
    trainer.args.eval_on_start = found is None and trainer.eval_dataset is not None
    if found:
        logger.info("going on from step %d", checkpoints.step_of(found))
    with context.stop.deferred(), full_disk_is_told(context.work):
        trainer.train(resume_from_checkpoint=str(found) if found else None)
    context.all_steps_taken()
    if context.stop.signal is not None:
        step = trainer.state.global_step
        raise StageInterrupted(
            f"stopped by {context.stop.signal.name} at step {step}, which is saved", saved=True
        )


def evaluate(trainer: Trainer) -> Metrics:
    """The metrics on the held-out rows after ``train``, such as ``loss``; none without rows."""
    return {} if trainer.eval_dataset is None else _plain(trainer.evaluate())


def before_training(context: StageContext) -> Metrics:
    """The metrics on the held-out rows before the first step; none without rows."""
    path = context.work / BEFORE
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def _plain(metrics: Mapping[str, float]) -> Metrics:
    """The metrics of an evaluation under their own names, without those of time and progress."""
    return {
        key.removeprefix("eval_"): value
        for key, value in metrics.items()
        if not any(part in key for part in (*NOT_LOGGED, "epoch", "num_tokens"))
    }


@contextmanager
def full_disk_is_told(folder: Path) -> Iterator[None]:
    """Turn what torch and safetensors raise on a full disk into the OSError that it is."""
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        if not any(words in str(error) for words in FAILED_WRITES):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
