"""Lengths, statistics on the terminal, and merging with loss masks."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import artifact, documents, write, write_tokenizer
from rich.console import Console

from toolkit.artifacts import MANIFEST, Artifact
from toolkit.data.examine.inspection import inspect
from toolkit.data.examine.lengths import length_histogram, summarize
from toolkit.data.examine.locate import Dataset, locate
from toolkit.data.examine.merging import merge
from toolkit.data.examine.show import show_inspection
from toolkit.data.examine.show_stats import show_statistics
from toolkit.data.examine.statistics import bin_label, sections, statistics
from toolkit.data.indexed import IndexedReader
from toolkit.data.pack.rows import mask_prefix
from toolkit.errors import DataError

INFO = {
    "counts": {"read": 50_000, "written": 31_000, "removed": 18_700, "quarantined": 300},
    "drops": {"language": 3_700, "gopher_quality": 9_000, "exact_duplicate": 6_000, "none": 0},
    "languages": {"en": 30_100, "de": 820, "fr": 80},
    "pii": {"email": 1_204, "phone": 311},
    "dedup": {
        "exact": {"removed": 5_000, "kept": 1_200},
        "near": {"clusters": 812, "removed": 1_000, "bands": 14, "sizes": {"2": 700}},
    },
    "decontamination": {"gsm8k.jsonl": {"items": 1_319, "contaminated": 7, "too_short": 2}},
    "per_source": [
        {"name": f"/data/crawl/with/a/long/path/{i:03}.jsonl.zst", "documents": 9, "tokens": 5 + i}
        for i in range(50)
    ],
}


def printed(found: object, columns: int) -> list[str]:
    console = Console(width=columns, highlight=False, no_color=True)
    with console.capture() as capture:
        console.print(found)
    return [line.rstrip() for line in capture.get().splitlines()]


@settings(deadline=None, max_examples=200, derandomize=True, database=None)
@given(
    st.lists(
        st.lists(st.one_of(st.integers(0, 40), st.integers(0, 2**31 - 1)), max_size=20), max_size=4
    )
)
def test_bins_hold_every_length_once(parts: list[list[int]]) -> None:
    found = summarize(np.array(part, np.int32) for part in parts)
    lengths = [n for part in parts for n in part]
    assert (found.documents, found.tokens) == (len(lengths), sum(lengths))
    for one in found.bins:
        inside = [n for n in lengths if one.low <= n <= one.high]
        assert one.documents == len(inside)
        assert one.tokens == pytest.approx(sum(inside))
    assert all(a.high + 1 == b.low for a, b in pairwise(found.bins))
    assert sum(one.documents for one in found.bins) == len(lengths)
    histogram = length_histogram(np.array(lengths, np.int64))
    assert sum(histogram) == len(lengths)
    for number, count in enumerate(histogram):
        assert count == sum(n.bit_length() == number for n in lengths)


def test_percentiles_are_those_of_numpy() -> None:
    lengths = np.random.default_rng(3).integers(0, 5000, 999)
    found = summarize([lengths[:300], lengths[300:]])
    assert found.percentiles == {p: np.percentile(lengths, p) for p in found.percentiles}
    assert (found.shortest, found.longest) == (lengths.min(), lengths.max())
    assert found.mean == pytest.approx(lengths.mean())


def test_labels_of_bins() -> None:
    assert [bin_label(n) for n in (0, 1, 2, 3, 11)] == ["0", "1", "2 - 3", "4 - 7", "1,024 - 2,047"]


def test_sections_add_up_and_are_sorted() -> None:
    found = {section.title: section for section in sections(INFO)}
    outcomes = {row.label: row.values[0] for row in found["Documents"].rows}
    assert outcomes["read"] == sum(n or 0 for name, n in outcomes.items() if name != "read")
    drops = found["Removed, by reason"]
    assert [row.label for row in drops.rows] == ["gopher_quality", "exact_duplicate", "language"]
    assert drops.rows[0].share == 9_000 / 50_000
    assert sum(row.share for row in found["Languages"].rows) == pytest.approx(1)
    assert sum(row.share for row in found["Tokens by source"].rows) == pytest.approx(1)
    duplicates = {row.label: row.values for row in found["Duplicates"].rows}
    assert duplicates["exact duplicates, removed"] == (5_000,)
    assert duplicates["near duplicates, clusters"] == (812,)
    assert len(duplicates) == 3
    (row,) = found["Evaluation data found"].rows
    assert (row.label, row.values, row.share) == ("gsm8k.jsonl", (1_319, 7, 2), 7 / 1_319)


def test_sources_of_clean_are_counted_by_documents() -> None:
    listed = [
        {"name": n, "read": 9, "written": w, "removed": 9 - w} for n, w in (("a", 2), ("b", 6))
    ]
    (found,) = sections({"per_source": listed})
    assert found.columns == ("read", "written", "removed")
    assert [(row.label, row.values, row.share) for row in found.rows] == [
        ("b", (9, 6, 3), 0.75),
        ("a", (9, 2, 7), 0.25),
    ]


@pytest.mark.parametrize("columns", [60, 80, 160])
def test_statistics_fit_the_terminal(tmp_path: Path, columns: int) -> None:
    made = Artifact(tmp_path, "documents", "f", stage="cleaned", kind="clean", info=INFO)
    lines = printed(show_statistics(statistics(made)), columns)
    assert max(map(len, lines)) <= columns
    text = "\n".join(lines)
    for said in ("cleaned (clean)", "gopher_quality", "18.0%", "email", "97.1%", "and 10 more"):
        assert said in text, said
    assert sum("█" in line for line in lines) > (30 if columns > 60 else 5)
    assert "049.jsonl.zst" in text, "the end of a path is what tells it from others"


def test_an_artifact_that_counts_nothing(tmp_path: Path) -> None:
    made = Artifact(tmp_path, "model", "f")
    assert "nothing is counted" in "\n".join(printed(show_statistics(statistics(made)), 80))


def test_masks_are_merged_with_their_tokens_and_shown(tmp_path: Path) -> None:
    found = documents(1, count=30)
    one = artifact(tmp_path / "one", [found[:10]], mask=True)
    two = artifact(tmp_path / "two", [found[10:]], mask=True)
    datasets = [*locate(one.folder), *locate(two.folder)]
    merged = merge(datasets, tmp_path / "both")
    tokens, mask = IndexedReader(tmp_path / "both"), IndexedReader(Path(str(merged.mask)))
    assert mask.header.dtype is np.uint8
    for number, document in enumerate(found):
        assert np.array_equal(tokens[number], document)
        assert np.array_equal(mask[number], document % 2)
    shares = [inspect([Dataset(tmp_path / "both", mask=Path(str(merged.mask)))]), inspect(datasets)]
    trained = sum(int((d % 2).sum()) for d in found) / sum(map(len, found))
    assert [shown.mask_share for shown in shares] == [trained, trained]
    (again,) = locate(tmp_path / "both")
    assert again.mask == mask_prefix(tmp_path / "both") == Path(str(merged.mask))
    lines = "\n".join(printed(show_inspection(shares[1]), 80))
    assert f"loss mask: {trained:.1%} of the tokens" in lines
    assert "all" in lines, "several datasets have a line for all of them"


def test_masks_and_dtypes_that_differ_are_not_merged(tmp_path: Path) -> None:
    found = documents(1, count=8)
    masked = artifact(tmp_path / "masked", [found], mask=True)
    plain = artifact(tmp_path / "plain", [found])
    both = [*locate(masked.folder), *locate(plain.folder)]
    with pytest.raises(DataError, match="one has a loss mask, the other has none"):
        merge(both, tmp_path / "both")
    other = [
        Dataset(write(tmp_path / "wide", found, np.int32)),
        Dataset(plain.path("text_document-0")),
    ]
    with pytest.raises(DataError, match=r"wide and .*text_document-0.*dtypes: int32 and uint16"):
        merge(other, tmp_path / "both")
    assert list(tmp_path.glob("both*")) == []


def test_a_damaged_dataset_is_not_merged(tmp_path: Path) -> None:
    prefixes = [write(tmp_path / name, documents(n, count=9)) for n, name in enumerate("ab")]
    index = prefixes[1].with_name("b.idx")
    content = bytearray(index.read_bytes())
    content[34 + 4 * 2] ^= 4
    index.write_bytes(content)
    with pytest.raises(DataError, match=r"b\.idx, byte 42"):
        merge([Dataset(p) for p in prefixes], tmp_path / "both")


def test_the_tokenizer_that_is_given_decodes(tmp_path: Path) -> None:
    made = artifact(tmp_path / "made", [documents(1, count=3)])
    given_ = write_tokenizer(tmp_path / "given", letter="z")
    own, other = (inspect(locate(made.folder), tokenizer=t) for t in (None, given_))
    assert own.documents[0].text is not None and other.documents[0].text is not None
    assert own.documents[0].text.replace("w", "z") == other.documents[0].text
    assert (own.ends.text, own.ends.share) == ("<eod>", 1.0) if own.ends else False


def test_a_manifest_that_is_damaged_is_an_error_not_a_crash(tmp_path: Path) -> None:
    made = artifact(tmp_path / "made", [documents(1, count=3)])
    manifest = made.path(MANIFEST)
    record = json.loads(manifest.read_text())
    record["info"]["prefixes"] = []
    manifest.write_text(json.dumps(record))
    with pytest.raises(DataError, match="names no prefixes"):
        locate(made.folder)
