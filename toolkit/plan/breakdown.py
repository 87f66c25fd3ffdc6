"""A step's seconds, by what they are spent on."""

from __future__ import annotations

from dataclasses import dataclass, fields
from operator import add, attrgetter


@dataclass(frozen=True)
class Breakdown:
    """Seconds of a step by what they are spent on; each is of one GPU, on average."""

    matmul: float = 0.0
    attention: float = 0.0
    memory: float = 0.0
    """Kernels that only move bytes."""
    recompute: float = 0.0
    tensor: float = 0.0
    """Communication in view, of TP; the next ones of CP, EP, PP and DP."""
    context: float = 0.0
    expert: float = 0.0
    pipeline: float = 0.0
    data: float = 0.0
    host: float = 0.0
    """Layers so short that the host can't issue them fast enough."""
    imbalance: float = 0.0
    """Waiting for the slowest stage."""
    bubble: float = 0.0
    """Filling and draining the pipeline."""
    optimizer: float = 0.0

    def __add__(self, other: Breakdown) -> Breakdown:
        return Breakdown(*map(add, _values(self), _values(other)))

    def __mul__(self, times: float) -> Breakdown:
        return Breakdown(*[times * value for value in _values(self)])

    def values(self) -> list[float]:
        """The seconds, in order of the fields."""
        return list(_values(self))

    def items(self) -> list[tuple[str, float]]:
        """Name and seconds."""
        return list(zip(NAMES, self.values(), strict=True))

    @property
    def total(self) -> float:
        """All of it."""
        return sum(self.values())


NAMES = tuple(field.name for field in fields(Breakdown))
_values = attrgetter(*NAMES)  # a search adds up many thousands of them

LABELS = {
    "matmul": "matrices",
    "attention": "attention",
    "memory": "moving bytes",
    "recompute": "recomputation",
    "tensor": "TP communication",
    "context": "CP communication",
    "expert": "EP communication",
    "pipeline": "messages between stages",
    "data": "DP communication",
    "host": "waiting for kernel launches",
    "imbalance": "uneven stages",
    "bubble": "pipeline bubble",
    "optimizer": "optimizer step",
}
"""Each part of a step, in the fewest words; "moving bytes" are norms, activations, casts."""
