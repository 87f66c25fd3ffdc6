"""The table that an ``evaluate`` stage makes, as it is stored: ``scores.json``. No torch.

::

    {"version": 1,
     "models": [{"name", "type", "fingerprint", "parameters"}, ...],      the columns
     "rows": [{"measure": "perplexity",        the setting it came from
               "source": "sample:python-docs/held-out",   what was scored, or the task's name
               "figure": "bits_per_byte", "label": "Bits per byte",
               "better": "lower" | "higher" | null, "headline": true,
               "percent": false, "unit": "tokens",         what n counts
               "values": [{"value", "standard_error", "n",
                           "change": {"model", "value", "standard_error"} | null} | null, ...]},
              ...],
     "counts": {MEASURE: {MODEL: {SOURCE: {...}}}},        documents, tokens, bytes, ties, ...
     "notes": {MEASURE: "how it is computed"},
     "settings": {"seq_length", "stride", ...}}

``generations.jsonl`` beside it has one row per prompt and model: ``{"prompt", "model", "text",
"tokens", "finish", "chat"}``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from toolkit.artifacts import write_json
from toolkit.errors import ToolkitError

SCORES = "scores.json"
GENERATIONS = "generations.jsonl"
VERSION = 1


@dataclass(frozen=True)
class Change:
    """How far a value is from the one of ``model``; both saw the same items, so it is paired."""

    model: str
    value: float
    standard_error: float | None = None


@dataclass(frozen=True)
class Value:
    """One cell. ``n`` counts what the row's ``unit`` says; the error is None for a single item."""

    value: float
    standard_error: float | None = None
    n: int = 0
    change: Change | None = None


@dataclass(frozen=True)
class Row:
    """One figure of one measure on one source, for all models; None where there is none."""

    measure: str
    source: str
    figure: str
    label: str
    values: tuple[Value | None, ...]
    better: Literal["lower", "higher"] | None = None
    headline: bool = False
    percent: bool = False
    unit: str = ""

    def best(self) -> frozenset[int]:
        """Columns with the best value; none where all are alike, or nothing is better."""
        found = {i: v.value for i, v in enumerate(self.values) if v is not None}
        if self.better is None or len(set(found.values())) < 2:
            return frozenset()
        choose = min if self.better == "lower" else max
        target = choose(found.values())
        return frozenset(i for i, value in found.items() if value == target)


@dataclass(frozen=True)
class ScoredModel:
    """One column."""

    name: str
    type: str = "model"
    fingerprint: str = ""
    parameters: int | None = None


@dataclass(frozen=True)
class Scores:
    """The whole table."""

    models: tuple[ScoredModel, ...]
    rows: tuple[Row, ...]
    counts: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    version: int = VERSION

    def write(self, folder: Path) -> None:
        """Write ``scores.json``."""
        write_json(folder / SCORES, asdict(self))

    def headlines(self) -> dict[str, dict[str, float]]:
        """The headline figures, by ``figure/source`` and then by model."""
        return {
            f"{row.figure}/{row.source}": {
                m.name: v.value for m, v in zip(self.models, row.values, strict=True) if v
            }
            for row in self.rows
            if row.headline
        }


@dataclass(frozen=True)
class Written:
    """What one model wrote after one prompt."""

    prompt: str
    model: str
    text: str
    tokens: int
    finish: Literal["stop", "length"]
    """``stop``: the model ended it; ``length``: it was cut at max_new_tokens or the context."""
    chat: bool
    """Whether the prompt went through the model's chat template."""


def read_scores(folder: Path) -> Scores:
    """The table of a ``scores`` artifact.

    Raises:
        ToolkitError: it is missing, not readable, or of a newer version.
    """
    path = folder / SCORES
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["version"] > VERSION:
            raise ToolkitError(
                f"version {raw['version']} of scores, this toolkit reads {VERSION}", where=str(path)
            )
        raw["models"] = tuple(ScoredModel(**m) for m in raw["models"])
        raw["rows"] = tuple(_row(r) for r in raw["rows"])
        return Scores(**raw)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ToolkitError(f"not readable as scores: {error!r}", where=str(path)) from error


def read_generations(folder: Path) -> list[Written]:
    """The rows of ``generations.jsonl``; none where no prompts were given.

    Raises:
        ToolkitError: a row is not readable.
    """
    path = folder / GENERATIONS
    if not path.is_file():
        return []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        return [Written(**json.loads(line)) for line in lines if line]
    except (ValueError, TypeError) as error:
        raise ToolkitError(f"not readable as generations: {error!r}", where=str(path)) from error


def write_generations(folder: Path, rows: Iterable[Written]) -> None:
    """Write ``generations.jsonl``."""
    text = "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)
    (folder / GENERATIONS).write_text(text, encoding="utf-8")


def _row(raw: dict[str, Any]) -> Row:
    return Row(**{**raw, "values": tuple(_value(v) for v in raw["values"])})


def _value(raw: dict[str, Any] | None) -> Value | None:
    if raw is None:
        return None
    change = raw.get("change")
    return Value(**{**raw, "change": Change(**change) if change else None})
