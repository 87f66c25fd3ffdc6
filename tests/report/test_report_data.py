"""The report's data section: bars of what was counted, and the histogram of lengths."""

import json
import re
from pathlib import Path

import pytest
from fake_run import write_run
from test_report import EVIL, read

from toolkit.data.clean.settings import SAFE_HARBOR_LIMITS
from toolkit.data.examine.statistics import sections
from toolkit.report.build import build_report
from toolkit.report.charts import BOTTOM, HEIGHT, TOP
from toolkit.report.data import MOST_ROWS, data_charts, source_names
from toolkit.report.facts import facts

CLEANED = {
    "counts": {"read": 50_000, "written": 31_000, "removed": 18_700, "quarantined": 300},
    "drops": {"gopher_quality": 9_000, "exact_duplicate": 6_000, "language": 3_700},
    "languages": {"en": 30_100, "de": 820, "fr": 80},
    "pii": {"email": 1_204, "phone": 311},
    "per_source": [{"name": f"crawl/{i:03}.jsonl.zst", "documents": 1000 + i} for i in range(40)],
}


def change_info(run_dir: Path, stage: str, info: dict, kind: str = "dataset") -> None:
    path = run_dir / stage / "artifact" / "artifact.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"type": kind, "info": info}))


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = write_run(tmp_path / "mini")
    change_info(folder, "vocabulary", CLEANED, "documents")
    return folder


def test_a_documents_artifact_shows_what_was_removed_and_why(run_dir: Path) -> None:
    page = read(build_report(run_dir))
    for said in (
        "vocabulary documents from crawl/000.jsonl.zst, crawl/001.jsonl.zst, crawl/002.jsonl.zst "
        "and 37 more",
        "31,000 written 62.0 %",
        "18,700 removed 37.4 %",
        "Removed, by reason",
        "gopher_quality9,000",
        "18.0 % of documents read",
        "Languages",
        "Personal data replaced",
        "32 more",
    ):
        assert said in re.sub(r"\s+", " ", page.text), said
    assert "Drops," not in page.text, "a mapping is shown as bars, not as facts again"


def test_parts_of_the_bar_have_the_colours_of_their_legend(run_dir: Path) -> None:
    text = build_report(run_dir).read_text()
    section = text[text.index('id="data"') : text.index('id="layout"')]
    bars = re.findall(r'<div class="bar".*?</div>', section, re.DOTALL)
    legends = re.findall(r'<ul class="parts".*?</ul>', section, re.DOTALL)
    assert len(bars) == len(legends) == 2
    for bar, legend in zip(bars, legends, strict=True):
        shown = re.findall(r'class="part-(\w+)"', legend)
        drawn = re.findall(r'class="part-(\w+)"', bar)
        assert drawn == [name for name in shown if name in drawn]
        assert all(f".part-{name} {{" in text for name in shown)
    assert re.findall(r'class="part-(\w+)"', bars[0]) == ["written", "quarantined", "removed"]


def test_bars_are_widest_where_there_is_most() -> None:
    (drops,) = [b for b in data_charts(CLEANED).bars if b.title == "Removed, by reason"]
    assert [row.label for row in drops.shown] == list(CLEANED["drops"])
    assert [row.width for row in drops.shown] == [100.0, 66.67, 41.11]
    (sources,) = [b for b in data_charts(CLEANED).bars if b.title == "Documents by source"]
    assert (len(sources.shown), len(sources.folded)) == (MOST_ROWS, 40 - MOST_ROWS)
    assert sources.shown[0].label == "crawl/039.jsonl.zst"


def test_the_histogram_fills_its_axis_in_proportion() -> None:
    info = {"document_lengths": {"histogram": [0, 5, 10, 40, 20]}}
    (drawn,) = data_charts(info).histograms
    assert [c.told.partition(" tokens")[0] for c in drawn.columns] == [
        "1",
        "2 - 3",
        "4 - 7",
        "8 - 15",
    ]
    heights = [c.height for c in drawn.columns]
    assert heights == pytest.approx([heights[2] * n / 40 for n in (5, 10, 40, 20)], abs=0.1)
    assert all(c.y >= TOP and c.y + c.height == HEIGHT - BOTTOM for c in drawn.columns)
    assert all(a.x + a.width < b.x for a, b in zip(drawn.columns, drawn.columns[1:], strict=False))
    assert "4 - 7 tokens: 40 documents, 53.3%" in drawn.summary


def test_a_wide_histogram_has_few_labels() -> None:
    (drawn,) = data_charts({"document_lengths": {"histogram": [3] * 22}}).histograms
    assert len(drawn.columns) == 22
    assert [t.label for t in drawn.x_ticks] == ["0", "8", "128", "2k", "32k", "512k"]


@pytest.mark.parametrize(
    "info",
    [
        {},
        {"counts": 3, "drops": [1], "languages": None, "per_source": {}, "weights": "x"},
        {"document_lengths": {"histogram": [0, 0]}, "per_source": [3, "x"], "pii": {"a": "b"}},
        {"counts": {"read": 0, "written": 0}, "drops": {}, "sources": None},
    ],
)
def test_whatever_an_artifact_says_can_be_shown(run_dir: Path, info: dict) -> None:
    list(sections(info))
    data_charts(info)
    change_info(run_dir, "corpus", info)
    assert "corpus" in read(build_report(run_dir)).text


def test_names_from_data_are_inert_in_bars(run_dir: Path) -> None:
    info = {
        "drops": {EVIL: 3},
        "languages": {EVIL: 1},
        "counts": {"read": 9, "written": 6},
        "per_source": [{"name": EVIL, "tokens": 4, "documents": 2, "text_bytes": 9}],
    }
    change_info(run_dir, "corpus", info)
    page = read(build_report(run_dir))
    assert page.text.count(EVIL) >= 4
    assert page.tags.count("img") == 0 and page.tags.count("script") == 1
    assert not [a for a in page.attributes if a[1].startswith("on")]


def test_sources_in_a_few_words() -> None:
    assert source_names({"sources": ["a", "b"]}) == "a, b"
    assert source_names({"sources": [{"name": "a"}] * 2}) == "a"
    assert source_names({"per_source": [{"name": n} for n in "abcde"]}) == "a, b, c and 2 more"
    assert source_names({}) == ""


def test_what_safe_harbor_cannot_do_is_told_to_its_end() -> None:
    ((_, fact),) = facts({"pii_limits": SAFE_HARBOR_LIMITS})
    assert fact.value == SAFE_HARBOR_LIMITS
