"""What a sender is told: which sink, of which stage, with which settings; and what sinks can do."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from toolkit.tracking.config import SinkName
from toolkit.tracking.tail import Step

End = Literal["complete", "failed", "interrupted"]
"""How an attempt at a stage ended, in the words of its ``state.json``."""
Ending = Literal["complete", "failed", "interrupted", "lost"]
"""As ``End``; ``lost``: the stage's process died without a word."""
TEXT = 250
"""Characters of a text that is sent as a result."""


@dataclass(frozen=True)
class Job:
    """One stage's metrics, to one sink."""

    sink: SinkName
    folder: Path
    """The stage's folder."""
    run_id: str
    stage: str
    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    """The sink's own settings."""
    config: dict[str, Any] = field(default_factory=dict)
    """The stage's settings, resolved, with its seed, fingerprint, and versions."""

    @property
    def run(self) -> str:
        """The name of the run that the stage belongs to."""
        return self.folder.parent.name

    def to_json(self) -> str:
        """As one line."""
        return json.dumps(asdict(self) | {"folder": str(self.folder)})

    @classmethod
    def from_json(cls, line: str) -> Job:
        """From ``to_json``."""
        found = json.loads(line)
        return cls(**found | {"folder": Path(found["folder"])})


class Sink(Protocol):
    """One run in one tracker. Anything it raises means: not now, try again from ``begin``."""

    def begin(self) -> int:
        """Open the run, or open it again; returns the last step it has already, -1 for none."""

    def rewound(self, last: int, sent: int) -> int:
        """Training goes on from ``last``, and had sent up to ``sent``; returns what counts now."""

    def log(self, steps: list[Step]) -> None:
        """Take steps, in order, and pass them on."""

    def finish(self, end: Ending, results: Mapping[str, float | str]) -> None:
        """Say how the stage ended, with its ``results``, and close the run."""


def results(info: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float | str]]:
    """Numbers and short texts of an artifact's ``info``, with dotted keys; no lists."""
    for key, value in info.items():
        if isinstance(value, Mapping):
            yield from results(value, f"{prefix}{key}.")
        elif isinstance(value, (int, float)) or (isinstance(value, str) and len(value) <= TEXT):
            yield f"{prefix}{key}", value
