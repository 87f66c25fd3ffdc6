"""The table from what was measured: rows from measures and sources, columns from models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from toolkit.evaluate.config import MEASURES, UNTRAINED
from toolkit.evaluate.figures import Figure, Kind, Scored
from toolkit.evaluate.scores import Row, ScoredModel, Scores, Value

Measured = Mapping[tuple[str, str], Sequence[Scored]]
"""What was measured, by measure and model."""
TIMES_BELOW = Kind(
    "times_below_untrained", "Times below the untrained model", better="higher", headline=True
)
RATIO_NOTE = (
    "The untrained model has the first model's shape and freshly initialised weights; its "
    "perplexity over a model's is how many times below it that model is."
)


def assemble(
    models: Sequence[ScoredModel],
    measured: Measured,
    notes: Mapping[str, str],
    settings: Mapping[str, Any],
) -> Scores:
    """The table of all models, in the order of the settings."""
    names = [model.name for model in models]
    used = [m for m in MEASURES if any(measure == m for measure, _ in measured)]
    rows = tuple(row for measure in used for row in _rows(measure, names, measured))
    counts = {
        measure: {
            name: {s.source: dict(s.counts) for s in measured.get((measure, name), ())}
            for name in names
        }
        for measure in used
    }
    shown = {m: notes[m] for m in used if m in notes}
    if any(row.figure == TIMES_BELOW.name for row in rows):
        shown["untrained"] = RATIO_NOTE
    return Scores(tuple(models), rows, counts, shown, settings)


def _rows(measure: str, names: Sequence[str], measured: Measured) -> Iterator[Row]:
    by_model = {name: measured.get((measure, name), ()) for name in names}
    sources = dict.fromkeys(s.source for found in by_model.values() for s in found)
    for source in sources:
        figures = {
            name: {f.kind.name: f for s in found if s.source == source for f in s.figures}
            for name, found in by_model.items()
        }
        kinds = {f.kind.name: f.kind for found in figures.values() for f in found.values()}
        for kind in kinds.values():
            column = [figures[name].get(kind.name) for name in names]
            yield _row(measure, source, kind, names, column)
            if kind.name == "perplexity" and UNTRAINED in names:
                yield _times_below(source, names, column)


def _row(
    measure: str, source: str, kind: Kind, names: Sequence[str], column: Sequence[Figure | None]
) -> Row:
    values: list[Value | None] = []
    before: tuple[str, Figure] | None = None
    for name, figure in zip(names, column, strict=True):
        values.append(figure.result(before) if figure else None)
        before = (name, figure) if figure else before
    return Row(
        measure=measure,
        source=source,
        figure=kind.name,
        label=kind.label,
        values=tuple(values),
        better=kind.better,
        headline=kind.headline,
        percent=kind.percent,
        unit=kind.unit,
    )


def _times_below(source: str, names: Sequence[str], column: Sequence[Figure | None]) -> Row:
    untrained = column[names.index(UNTRAINED)]
    assert untrained is not None, "the untrained model is measured like the others"
    values = [
        Value(untrained.value / figure.value) if figure and name != UNTRAINED else None
        for name, figure in zip(names, column, strict=True)
    ]
    return Row(
        measure="perplexity",
        source=source,
        figure=TIMES_BELOW.name,
        label=TIMES_BELOW.label,
        values=tuple(values),
        better=TIMES_BELOW.better,
        headline=TIMES_BELOW.headline,
    )
