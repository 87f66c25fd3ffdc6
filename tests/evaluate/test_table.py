from pathlib import Path

import pytest
from rich.console import Console

from toolkit.errors import ToolkitError
from toolkit.evaluate.scores import (
    Change,
    Row,
    ScoredModel,
    Scores,
    Value,
    Written,
    read_generations,
    read_scores,
    write_generations,
)
from toolkit.evaluate.table import scores_tables, short_source, written

ROWS = (
    Row(
        *("perplexity", "/data/a/held.txt", "perplexity", "Perplexity"),
        (Value(4163.2, 31.4, 10), Value(83.214, 2.44, 10, Change("base", -4080.0, 1.7)), None),
        better="lower",
        headline=True,
        unit="tokens",
    ),
    Row(*("perplexity", "/data/a/held.txt", "bits_per_byte", "Bits per byte"), (None, None, None)),
    Row(
        *("preferences", "pairs[1].jsonl", "accuracy", "Preference accuracy"),
        (Value(0.5, 0.05, 100), Value(0.5, 0.05, 100), Value(0.625, 0.04, 100)),
        better="higher",
        headline=True,
        percent=True,
    ),
)
SCORES = Scores(tuple(ScoredModel(n) for n in ("base", "chat", "preferred")), ROWS)


def test_the_table_shows_headlines_with_errors(tmp_path: Path) -> None:
    folder = tmp_path / "scores" / "artifact"
    folder.mkdir(parents=True)
    SCORES.write(folder)
    (table,) = scores_tables(tmp_path)
    console = Console(width=100, record=True, force_terminal=True)
    console.print(table)
    text = console.export_text(clear=False)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "measure base chat preferred" in lines
    assert "Perplexity ↓ 4,163 ± 31 83.2 ± 2.4 –" in lines
    assert "Preference accuracy ↑ 50.0 % ± 5.0 50.0 % ± 5.0 62.5 % ± 4.0" in lines
    assert "pairs[1].jsonl" in lines
    assert "Bits per byte" not in text
    styled = console.export_text(styles=True)
    assert "\x1b[1;32m83.2\x1b[0m" in styled
    assert "\x1b[1;32m62.5 %\x1b[0m" in styled
    assert "\x1b[1;32m50.0 %" not in styled


def test_the_best_is_none_where_nothing_is_better() -> None:
    assert ROWS[0].best() == {1}
    assert ROWS[2].best() == {2}
    assert ROWS[1].best() == frozenset()
    equal = Row("m", "s", "f", "l", (Value(1.0), Value(1.0)), better="lower")
    assert equal.best() == frozenset()


@pytest.mark.parametrize(
    ("value", "percent", "expected"),
    [
        (Value(83.214, 2.44), False, ("83.2", "2.4")),
        (Value(8.3312, 0.0104), False, ("8.331", "0.010")),
        (Value(4163.2, 314.0), False, ("4,163", "314")),
        (Value(0.6251, 0.02), True, ("62.5 %", "2.0")),
        (Value(0.123456), False, ("0.1235", "")),
        (Value(0.0, 0.0), False, ("0.00", "0.00")),
    ],
)
def test_values_have_the_places_that_their_error_allows(value, percent, expected) -> None:
    assert written(Row("m", "s", "f", "l", (value,), percent=percent), value) == expected


def test_sources_are_as_short_as_they_can_be() -> None:
    among = {"/data/a/held.txt", "/data/b/held.txt", "/data/c/other.txt", "sample:x/held-out"}
    assert short_source("/data/a/held.txt", among) == "a/held.txt"
    assert short_source("/data/c/other.txt", among) == "other.txt"
    assert short_source("sample:x/held-out", among) == "sample:x/held-out"


def test_scores_and_generations_are_read_as_they_were_written(tmp_path: Path) -> None:
    SCORES.write(tmp_path)
    assert read_scores(tmp_path) == SCORES
    rows = [Written("a\nb", "base", "line\u2028two\r\n", 3, "stop", True)]
    write_generations(tmp_path, rows)
    assert read_generations(tmp_path) == rows
    assert SCORES.headlines()["accuracy/pairs[1].jsonl"]["preferred"] == 0.625
    (tmp_path / "scores.json").write_text('{"version": 99}')
    with pytest.raises(ToolkitError, match="version 99 of scores"):
        read_scores(tmp_path)
    (tmp_path / "scores.json").write_text('{"version": 1, "models"')
    with pytest.raises(ToolkitError, match="not readable as scores"):
        read_scores(tmp_path)
