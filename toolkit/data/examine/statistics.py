"""What a stage counted, as sections of rows: for the terminal and for the report. No numpy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from toolkit.artifacts import Artifact

Number = int | float
Form = Literal["bars", "histogram"]
OUTCOMES = ("written", "empty", "quarantined", "removed")
"""What becomes of the documents that a stage reads, as ``counts`` names it."""
OF_SOURCES = ("documents", "read", "written", "removed", "tokens", "text_bytes")
"""What is counted by source: by ``tokenize``, and by ``clean``."""


@dataclass(frozen=True)
class Row:
    """One line of a section."""

    label: str
    values: tuple[Number | None, ...]
    share: float
    """Of the whole that the section is about: of the documents read, of the tokens."""


@dataclass(frozen=True)
class Section:
    """Counts that belong together."""

    title: str
    columns: tuple[str, ...]
    """Names of ``Row.values``; those that end in ``bytes`` are."""
    rows: tuple[Row, ...]
    of: str
    """What the shares are of."""
    form: Form = "bars"


@dataclass(frozen=True)
class Statistics:
    """An artifact's sections."""

    folder: str
    type: str
    made_by: str
    sections: tuple[Section, ...]

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def statistics(artifact: Artifact) -> Statistics:
    """All that an artifact's ``info`` counts."""
    made = f"{artifact.stage} ({artifact.kind})" if artifact.stage else ""
    found = tuple(sections(artifact.info))
    return Statistics(str(artifact.folder), artifact.type, made, found)


def sections(info: Mapping[str, Any]) -> Iterator[Section]:
    """The sections that an ``info`` has anything for, in the order in which they are shown."""
    counts = _mapping(info.get("counts"))
    read = _number(counts.get("read"))
    packing = _mapping(info.get("packing"))
    if packing:
        yield from _packing(packing)
    else:
        yield from _outcomes(counts, read)
    yield from _parts(info)
    yield from _sources(info)
    yield from _tally("Removed, by reason", info.get("drops"), read, "documents read", "documents")
    yield from _tally("Texts changed", info.get("changed"), read, "documents read", "documents")
    yield from _tally("Languages", info.get("languages"), None, "documents", "documents")
    yield from _tally("Personal data replaced", info.get("pii"), None, "replacements", "times")
    yield from _duplicates(_mapping(info.get("dedup")), read)
    yield from _evaluations(_mapping(info.get("decontamination")))
    yield from _blend(info)
    yield from _lengths(info)


def _outcomes(counts: Mapping[str, Any], read: Number) -> Iterator[Section]:
    """Documents read, and what became of them; they add up."""
    found = {name: _number(counts.get(name)) for name in OUTCOMES if counts.get(name) is not None}
    if not read or not found:
        return
    rows = [Row("read", (read,), 1.0)]
    rows += [Row(name, (count,), count / read) for name, count in found.items()]
    yield Section("Documents", ("documents",), tuple(rows), "documents read")


def _packing(packing: Mapping[str, Any]) -> Iterator[Section]:
    """What the packed rows are filled with."""
    room = _number(packing.get("rows")) * _number(packing.get("seq_length"))
    names = ("tokens", "trained_tokens", "padding_tokens", "lost_tokens")
    if room:
        rows = [Row(n.replace("_", " "), (_number(packing.get(n)),), 0.0) for n in names]
        rows = [Row(r.label, r.values, (r.values[0] or 0) / room) for r in rows]
        yield Section("Packed rows", ("count",), tuple(rows), "room in the rows")


def _parts(info: Mapping[str, Any]) -> Iterator[Section]:
    """Training, validation and test parts of a split."""
    parts = {name: _mapping(counts) for name, counts in _mapping(info.get("parts")).items()}
    total = sum(_number(part.get("tokens")) for part in parts.values())
    if total:
        columns = ("documents", "tokens")
        rows = tuple(
            Row(n, tuple(_number(p.get(c)) for c in columns), _number(p.get("tokens")) / total)
            for n, p in parts.items()
        )
        yield Section("Parts", columns, rows, "tokens")


def _sources(info: Mapping[str, Any]) -> Iterator[Section]:
    listed = info.get("per_source")
    if not isinstance(listed, Sequence) or not listed:
        return
    columns = tuple(n for n in OF_SOURCES if any(n in _mapping(one) for one in listed))
    whole = next((name for name in ("tokens", "written", "documents") if name in columns), "")
    total = sum(_number(_mapping(one).get(whole)) for one in listed) or 1
    rows = tuple(
        Row(
            str(one.get("name", "")),
            tuple(_number(one.get(column)) for column in columns),
            _number(one.get(whole)) / total,
        )
        for one in map(_mapping, listed)
    )
    title = "Tokens by source" if whole == "tokens" else "Documents by source"
    yield Section(title, columns, _by_share(rows), whole)


def _tally(
    title: str, found: Any, whole: Number | None, of: str, counted_as: str
) -> Iterator[Section]:
    """A mapping of names to counts, the most first; shares of ``whole``, or of their sum."""
    counted = {k: v for k, v in _flat(_mapping(found)) if _number(v)}
    if not counted:
        return
    total = whole or sum(counted.values()) or 1
    rows = tuple(Row(name, (count,), count / total) for name, count in counted.items())
    yield Section(title, (counted_as,), _by_share(rows), of)


def _duplicates(dedup: Mapping[str, Any], read: Number) -> Iterator[Section]:
    """Documents that deduplication removed, and the clusters that they were in."""
    named = {f"{k} duplicates": _mapping(dedup.get(k)) for k in ("exact", "near")}
    rows = [
        Row(f"{name}, {what}", (_number(found[what]),), _number(found[what]) / read if read else 0)
        for name, found in named.items()
        for what in ("removed", "clusters")
        if what in found
    ]
    if rows:
        yield Section("Duplicates", ("count",), tuple(rows), "documents read")


def _evaluations(found: Mapping[str, Any]) -> Iterator[Section]:
    """Items of evaluation data that documents held; the share is of the file's items."""
    columns = ("items", "contaminated", "too_short")
    rows = []
    for name, counts in ((name, _mapping(counts)) for name, counts in found.items()):
        values = tuple(_number(counts.get(column)) for column in columns)
        rows.append(Row(str(name), values, values[1] / values[0] if values[0] else 0.0))
    if rows:
        yield Section("Evaluation data found", columns, tuple(rows), "items")


def _blend(info: Mapping[str, Any]) -> Iterator[Section]:
    weights, prefixes = info.get("weights"), info.get("prefixes")
    if not isinstance(weights, Sequence) or not isinstance(prefixes, Sequence):
        return
    pairs = zip(prefixes, map(_number, weights), strict=False)
    rows = tuple(Row(str(name), (weight,), weight) for name, weight in pairs)
    yield Section("Blend", ("weight",), rows, "samples")


def _lengths(info: Mapping[str, Any]) -> Iterator[Section]:
    """The histogram whose bins double, see ``lengths.length_histogram``."""
    counts = _mapping(info.get("document_lengths")).get("histogram")
    if not isinstance(counts, Sequence) or isinstance(counts, str) or not any(counts):
        return
    total = sum(counts)
    first = next(k for k, count in enumerate(counts) if count)
    rows = tuple(
        Row(bin_label(k), (count,), count / total) for k, count in enumerate(counts) if k >= first
    )
    yield Section("Document lengths", ("documents",), rows, "documents", "histogram")


def bin_label(number: int) -> str:
    """The lengths of a bin: ``0``, ``1``, ``2 - 3``, ``4 - 7``."""
    if number < 2:
        return str(number)
    return f"{1 << number - 1:,} - {(1 << number) - 1:,}"


def _by_share(rows: Sequence[Row]) -> tuple[Row, ...]:
    return tuple(sorted(rows, key=lambda row: -row.share))


def _flat(found: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in found.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}, ")
        else:
            yield f"{above}{name}", value


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> Number:
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if plain else 0
