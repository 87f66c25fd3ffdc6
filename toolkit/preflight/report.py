"""What a rank found of its node: a few facts, and what was wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    check: str
    """Of all nodes: what compares them goes by it."""
    detail: str
    """A sentence with its figures."""
    failed: bool = False


@dataclass(frozen=True)
class Report:
    """What one rank found: ``rank-N.json``."""

    rank: int
    local_rank: int
    node: str
    findings: tuple[Finding, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    """What must be equal on all nodes, by name: driver, CUDA, NCCL, torch, Python, the toolkit."""
    gpu: str | None = None
    """The UUID of the GPU that the rank will use."""
    seconds: float = 0.0
    """That looking took, with the import of torch."""
    looked: bool = False
    """Whether it is done; a rank that only began has left its node's name."""

    def text(self) -> str:
        """As one line of JSON; a script finds ``"node": "NAME"`` in it without a parser."""
        return json.dumps(asdict(self))


def read_report(text: str) -> Report:
    """A report from its JSON.

    Raises:
        ValueError: it was cut short, or is none.
    """
    found: dict[str, Any] = json.loads(text)
    found["findings"] = tuple(Finding(**one) for one in found["findings"])
    return Report(**found)
