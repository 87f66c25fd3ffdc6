"""Rows of metrics: loss, gradient, learning rate, speed and memory, over each log interval."""

from __future__ import annotations

import resource
import time
from typing import Any

import torch
from torch import distributed

from toolkit.megatron.flops import flops_per_token, peak_tflops
from toolkit.megatron.optimizer import learning_rate
from toolkit.megatron.setup import Training
from toolkit.megatron.step import StepResult


class Meter:
    """Adds up steps, and makes a row of them when asked; evaluations and saves are not counted."""

    def __init__(self, training: Training) -> None:
        config = training.config
        self.training = training
        self._tokens = config.global_batch_size * config.sequence
        per_token = flops_per_token(config.model, config.sequence, training.vocab_size)
        self._tflop = per_token * self._tokens / 1e12 / training.layout.world_size
        self._peak = _peak(training)
        self._reset()

    def _reset(self) -> None:
        self._seconds = 0.0
        self._steps = 0
        self._losses: list[float] = []
        self._started = time.perf_counter()

    def pause(self) -> None:
        """Restart the clock: what happened since the last step is not part of the next."""
        self._started = time.perf_counter()

    def add(self, result: StepResult) -> None:
        """Count one step that has just ended."""
        now = time.perf_counter()
        self._seconds += now - self._started
        self._started = now
        self._steps += 1
        if result.verdict is None:
            self._losses.append(result.loss)

    def row(self, last: StepResult) -> dict[str, Any]:
        """The row of the steps since the last one; every rank calls this.

        ``tflops_per_second`` is of one rank, by the formula of ``flops_per_token``.
        """
        seconds = self._seconds / self._steps
        rate = self._tflop / seconds
        row = {
            "loss": sum(self._losses) / len(self._losses) if self._losses else None,
            "grad_norm": last.grad_norm,
            "lr": learning_rate(self.training.optimizer),
            "seconds_per_step": seconds,
            "tokens_per_second": self._tokens / seconds,
            "tflops_per_second": rate,
            **_memory(self.training.device),
        }
        if self._peak is not None:
            row["mfu"] = rate / self._peak
        self._reset()
        return row


def _peak(training: Training) -> float | None:
    if training.device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(training.device)
    return peak_tflops(name, fp8=training.config.fp8 is not None)


def _memory(device: torch.device) -> dict[str, float]:
    """The most that any rank has used so far: resident memory on a CPU; on a GPU what its allocator
    had given out, and what it had reserved for that, fragments included."""
    if device.type != "cuda":
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {"memory_gib": _highest(resident, device)}
    return {
        "memory_gib": _highest(torch.cuda.max_memory_allocated(device), device),
        "memory_reserved_gib": _highest(torch.cuda.max_memory_reserved(device), device),
    }


def _highest(used: int, device: torch.device) -> float:
    highest = torch.tensor(used / 2**30, dtype=torch.float64, device=device)
    distributed.all_reduce(highest, op=distributed.ReduceOp.MAX)
    return float(highest.item())
