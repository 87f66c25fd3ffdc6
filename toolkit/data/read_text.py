"""Records of ``.txt`` files: the whole file, its paragraphs, or its lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from toolkit.data.config import SampleBy
from toolkit.data.records import BadRecord, OnBad, Record, utf8_problem
from toolkit.data.streams import Stream


def read_text(
    stream: Stream, on_bad: OnBad, sample_by: SampleBy, text_key: str
) -> Iterator[Record]:
    """Records of one key; a piece that is no UTF-8 loses only itself."""
    place = stream.place
    for number, raw in _pieces(stream, sample_by):
        try:
            yield Record({text_key: raw.decode("utf-8")}, place, number)
        except UnicodeDecodeError as error:
            line = number + raw.count(b"\n", 0, error.start)
            on_bad(BadRecord(place.where(line), utf8_problem(raw, error), bytes(raw)))


def _pieces(stream: Stream, sample_by: SampleBy) -> Iterable[tuple[int, bytes | bytearray]]:
    """Documents, each with the number of its first line."""
    if sample_by == "document":
        return [(1, content)] if (content := stream.read()) else []
    if sample_by == "paragraph":
        return _paragraphs(stream.lines())
    return ((n, line.removesuffix(b"\r")) for n, line in enumerate(stream.lines(), start=1))


def _paragraphs(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Runs of lines that aren't blank, each with the number of its first line."""
    begun: list[bytes] = []
    number = 0
    for number, line in enumerate(lines, start=1):
        if line.strip():
            begun.append(line.removesuffix(b"\r"))
        elif begun:
            yield number - len(begun), b"\n".join(begun)
            begun = []
    if begun:
        yield number - len(begun) + 1, b"\n".join(begun)
