"""The training loop: steps, and between them the log, evaluation, checkpoints and signals."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import distributed

from toolkit.context import StageContext
from toolkit.errors import StageError, StageInterrupted
from toolkit.megatron import state
from toolkit.megatron.batches import Batch, Samples, load_batches
from toolkit.megatron.datasets import Datasets
from toolkit.megatron.evaluation import evaluate, held_out, perplexity
from toolkit.megatron.guards import LossGuard
from toolkit.megatron.metrics import Meter
from toolkit.megatron.setup import Training
from toolkit.megatron.state import Progress
from toolkit.megatron.step import StepResult, train_step

logger = logging.getLogger(__name__)


class Loop:
    """Trains from where ``progress`` stands to ``train_iters``."""

    def __init__(
        self,
        training: Training,
        datasets: Datasets,
        progress: Progress,
        root: Path,
        context: StageContext,
    ) -> None:
        self.training, self.config = training, training.config
        self.progress, self.root, self.context = progress, root, context
        self.guard = LossGuard(training.config, progress.loss_history)
        self.meter = Meter(training)
        self.valid = held_out(training, datasets.valid, training.vocab_size)
        self._train_data = datasets.train
        self._batches: list[Iterator[Batch]] | None = None
        self._saved = progress.iteration if progress.iteration > 0 else None

    def run(self) -> None:
        """Loop to the end.

        Raises:
            StageInterrupted: asked to stop; a checkpoint of this moment is saved.
            StageError: the guard says stop.
        """
        with self.context.stop.deferred():
            if self.progress.iteration == 0:
                self._evaluate()
            self.train_to(self.config.train_iters)
            self._save()
        self.context.all_steps_taken()

    def train_to(self, iteration: int) -> None:
        """Take steps until ``iteration``, with all that belongs between them."""
        if self._batches is None:
            self._batches = [self._load() for _ in self.training.chunks]
        self.meter.pause()
        while self.progress.iteration < iteration:
            stop = self.context.stop.requested
            self._advance(train_step(self.training, self._batches, self.guard, stop))

    def _load(self) -> Iterator[Batch]:
        """This rank's microbatches from here to the end."""
        if self._train_data is None:
            return iter(())
        last = self.config.train_iters * self.config.global_batch_size
        return load_batches(
            Samples(self._train_data, self.training.vocab_size),
            self.training.sharding.microbatches(self.progress.consumed_samples, last),
            self.training.device,
            self._workers(),
        )

    def _workers(self) -> int:
        if self.config.num_workers is not None:
            return self.config.num_workers
        return 2 if self.training.device.type == "cuda" else 0

    def _advance(self, result: StepResult) -> None:
        """Everything between this step and the next."""
        self.context.alive()
        progress, config = self.progress, self.config
        progress.iteration += 1
        progress.consumed_samples += config.global_batch_size
        progress.loss_history = self.guard.history
        self.meter.add(result)
        self._heed(result)
        iteration, end = progress.iteration, progress.iteration == config.train_iters
        if iteration % config.log_interval == 0 or iteration == 1 or end:
            self._log(result)
        if iteration % config.eval_interval == 0 or end:
            self._evaluate()
        if iteration % config.save_interval == 0:
            self._save()
        if self.context.rank == 0:
            self.context.progress(
                iteration, config.train_iters, unit="iterations", loss=result.loss
            )
        if result.stop and not end:
            self._stop()

    def _heed(self, result: StepResult) -> None:
        """Count a skipped batch, or stop, as the guard said."""
        progress, verdict = self.progress, result.verdict
        if verdict is None:
            progress.skipped_in_a_row = 0
            return
        progress.skipped_iters += 1
        progress.skipped_in_a_row += 1
        where = f"iteration {progress.iteration}"
        if verdict.action == "stop":
            raise StageError(
                f"{where}: {verdict.reason}",
                hint="the weights are as they were; let the batch be skipped (on_nan: skip,"
                " on_loss_spike: skip) and run again, or begin anew with a lower lr",
            )
        logger.warning("%s: %s; the batch is skipped", where, verdict.reason)
        if progress.skipped_in_a_row >= self.config.max_skipped_in_a_row:
            raise StageError(
                f"{where}: {progress.skipped_in_a_row} batches in a row were skipped;"
                f" the last because {verdict.reason}",
                hint="lower lr, or look at the data from here on",
            )

    def _log(self, result: StepResult) -> None:
        row = self.meter.row(result)
        row |= {
            "consumed_tokens": self.progress.consumed_samples * self.config.sequence,
            "skipped_iters": self.progress.skipped_iters,
        }
        self._write(row)
        if self.context.rank == 0:
            logger.info(
                "iteration %d/%d: loss %.4f, lr %.3g, %.3f s/step, %.0f tokens/s",
                self.progress.iteration,
                self.config.train_iters,
                result.loss,
                row["lr"],
                row["seconds_per_step"],
                row["tokens_per_second"],
            )

    def _evaluate(self) -> None:
        if self.valid is None:
            return
        # Before the first step nothing is watched: that step may compile what this one did not.
        begun = self.progress.iteration > 0
        each = self.context.alive if begun else lambda: None
        loss = evaluate(self.training, self.valid, each)
        self.progress.validation_loss = loss
        if self.progress.iteration == 0:
            self.progress.untrained_validation_loss = loss
        self._write({"validation_loss": loss, "validation_perplexity": perplexity(loss)})
        if self.context.rank == 0:
            logger.info(
                "iteration %d: held-out loss %.4f, perplexity %.2f (%d samples)",
                self.progress.iteration,
                loss,
                perplexity(loss),
                self.valid.count,
            )
        self.meter.pause()

    def _write(self, row: dict[str, Any]) -> None:
        if self.context.rank == 0:
            self.context.tracker.log(self.progress.iteration, row)

    def _save(self) -> None:
        if self._saved == self.progress.iteration:
            return
        folder = state.save(self.training, self.progress, self.root)
        self._saved = self.progress.iteration
        self.context.alive()
        if self.context.rank == 0:
            logger.info("saved %s", folder)
        self.meter.pause()

    def _stop(self) -> None:
        self._save()
        distributed.barrier()
        name = self.context.stop.signal.name if self.context.stop.signal else "another rank"
        raise StageInterrupted(
            f"stopped by {name}; iteration {self.progress.iteration} is saved", saved=True
        )
