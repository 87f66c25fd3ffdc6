"""Every rule that a layout must obey, asked at once.

``toolkit check`` shows the violations with file and line; ``toolkit plan --search`` asks only
whether there is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from toolkit.plan.rules import (
    dispatch,
    experts,
    fsdp,
    hardware,
    kernels,
    matrices,
    memory,
    pipeline,
    pipeline_layout,
    precision,
    ranks,
    sequence,
    userbuffers,
)
from toolkit.plan.rules.rule import Rule
from toolkit.plan.shape import Run

RULES: tuple[Rule, ...] = (
    *ranks.RULES,
    *matrices.RULES,
    *pipeline.RULES,
    *pipeline_layout.RULES,
    *sequence.RULES,
    *userbuffers.RULES,
    *experts.RULES,
    *dispatch.RULES,
    *memory.RULES,
    *fsdp.RULES,
    *precision.RULES,
    *kernels.RULES,
    *hardware.RULES,
)


@dataclass(frozen=True)
class Violation:
    """One way in which a run can't work."""

    rule: str
    """The rule's name: ``tensor-parallel-divides-the-heads``."""
    key: str
    """The setting, below its stage: ``parallel.tensor_model_parallel_size``."""
    message: str
    """The arithmetic, and the nearest values that would work."""
    source: str
    """What says so: file and function, in megatron-core where no other project is named."""


def violations(run: Run) -> Iterator[Violation]:
    """All violations of a run, rule by rule."""
    for rule in RULES:
        for key, message in rule.check(run):
            yield Violation(rule.name, key, message, rule.source)


def is_valid(run: Run) -> bool:
    """Whether no rule is violated; stops at the first that is."""
    return next(violations(run), None) is None
