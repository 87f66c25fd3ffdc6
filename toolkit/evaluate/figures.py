"""Figures with standard errors, and paired differences of two models. No torch.

Every figure is a total over a total: loss over tokens, bits over bytes, right answers over
questions. Its error comes from how the items (documents, conversations, pairs) differ, not from
the tokens within them, which are far from independent: a ratio estimator with clusters (Cochran,
Sampling Techniques, ch. 6). Two models saw the same items, so their difference is taken item by
item, which takes away what is hard or easy for both (Miller 2024, Adding Error Bars to Evals).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from toolkit.evaluate.scores import Change, Value


@dataclass(frozen=True)
class Kind:
    """What a figure is called and how it is read; the same for every model."""

    name: str
    label: str
    unit: str = ""
    """What its total counts: ``tokens``, ``pairs``."""
    better: Literal["lower", "higher"] | None = None
    headline: bool = False
    percent: bool = False


@dataclass(frozen=True)
class Figure:
    """One number for one model: ``sum(over) / sum(under)``, or its exponential."""

    kind: Kind
    over: Sequence[float] = ()
    """One number per item: its loss, or whether it was right."""
    under: Sequence[float] = ()
    """One number per item: its tokens, or 1."""
    exponential: bool = False
    given: tuple[float, float | None, int] | None = None
    """Value, standard error and n, where the items are not known."""

    @property
    def value(self) -> float:
        """The figure. Infinite where an exponential overflows."""
        if self.given:
            return self.given[0]
        ratio = math.fsum(self.over) / math.fsum(self.under)
        try:
            return math.exp(ratio) if self.exponential else ratio
        except OverflowError:
            return math.inf

    @property
    def standard_error(self) -> float | None:
        """None for one item alone; by the delta method for an exponential."""
        return self.given[1] if self.given else _root(self.influences())

    @property
    def n(self) -> int:
        """How many of ``kind.unit`` it is made from."""
        return self.given[2] if self.given else round(math.fsum(self.under))

    def influences(self) -> list[float]:
        """How far each item moves the figure; they sum to zero."""
        total = math.fsum(self.under)
        ratio = math.fsum(self.over) / total
        slope = self.value if self.exponential else 1.0
        return [slope * (x - ratio * w) / total for x, w in zip(self.over, self.under, strict=True)]

    def result(self, before: tuple[str, Figure] | None) -> Value:
        """The table's cell, with the change against the model before it, by name."""
        change = None
        if before is not None:
            name, other = before
            change = Change(name, self.value - other.value, self._error_against(other))
        return Value(self.value, self.standard_error, self.n, change)

    def _error_against(self, other: Figure) -> float | None:
        paired = not self.given and not other.given and len(self.over) == len(other.over)
        if paired:
            pairs = zip(self.influences(), other.influences(), strict=True)
            return _root([mine - theirs for mine, theirs in pairs])
        errors = (self.standard_error, other.standard_error)
        return None if None in errors else math.hypot(*(e for e in errors if e is not None))


def _root(influences: Sequence[float]) -> float | None:
    items = len(influences)
    if items < 2:
        return None
    return math.sqrt(items / (items - 1) * math.fsum(i * i for i in influences))


@dataclass(frozen=True)
class Scored:
    """A measure's outcome for one model on one source."""

    source: str
    figures: tuple[Figure, ...]
    counts: Mapping[str, Any]
    """Plain values that say what was read and skipped."""

    def to_json(self) -> dict[str, Any]:
        """Plain values, for ``from_json``."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Scored:
        """What ``to_json`` made."""
        return cls(raw["source"], tuple(_figure(f) for f in raw["figures"]), raw["counts"])


def _figure(raw: Mapping[str, Any]) -> Figure:
    given = raw["given"]
    return Figure(**{**raw, "kind": Kind(**raw["kind"]), "given": tuple(given) if given else None})
