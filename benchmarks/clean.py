"""Filters of ``clean`` beside datatrove's: the same documents, one process each, one run.

    python benchmarks/clean.py [--megabytes 12] [--corpus corpus.jsonl]

Needs ``pip install datatrove spacy nltk ftfy`` and what datatrove's filters import. Blocks of
documents go through theirs and ours by turns, and rates are of CPU time, which other work on the
machine moves less than the wall's. Agreement is that of decisions: whether a document stays, and
by which rule it goes; of edits, that of the texts.

Ends with 1 when a filter, or all filters in a row, agree on less than 99.9 % or are less than ten
times as fast.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from corpus import build_corpus

from toolkit.data.clean.filter_settings import (
    C4QualitySettings,
    FilterSettings,
    FineWebQualitySettings,
    GopherQualitySettings,
    GopherRepetitionSettings,
)
from toolkit.data.clean.normalise import Normaliser
from toolkit.data.clean.pipeline import Pipeline
from toolkit.data.clean.scrub import Scrubber
from toolkit.data.clean.settings import NormalizeSettings, PiiSettings

AGREEMENT, RATIO = 0.999, 10.0
BLOCK = 2 << 20
"""Characters of a block, and of a batch of ours."""
FILTERS: tuple[tuple[FilterSettings, str], ...] = (
    (GopherQualitySettings(), "GopherQualityFilter"),
    (GopherRepetitionSettings(), "GopherRepetitionFilter"),
    (C4QualitySettings(), "C4QualityFilter"),
    (FineWebQualitySettings(), "FineWebQualityFilter"),
)
Outcome = tuple[str | None, str]
"""Why a document goes, and what its text has become."""


@dataclass
class Row:
    """One line of the table."""

    name: str
    theirs: Callable[[list[str]], list[Outcome]]
    ours: Callable[[list[str]], list[Outcome]]
    enforced: bool = True
    seconds: list[float] = field(default_factory=lambda: [0.0, 0.0])
    documents: int = 0
    agreed: int = 0
    removed: int = 0

    def block(self, texts: list[str]) -> None:
        """Take a block through both."""
        results = []
        for index, function in enumerate((self.theirs, self.ours)):
            started = time.process_time()
            results.append(function(texts))
            self.seconds[index] += time.process_time() - started
        self.documents += len(texts)
        self.agreed += sum(a == b for a, b in zip(*results, strict=True))
        self.removed += sum(reason is not None for reason, _ in results[1])

    @property
    def ratio(self) -> float:
        """How many times as fast ours is."""
        return self.seconds[0] / self.seconds[1]

    @property
    def holds(self) -> bool:
        """Whether it is what the module's docstring asks."""
        enough = self.agreed >= AGREEMENT * self.documents and self.ratio >= RATIO
        return enough or not self.enforced

    def show(self, megabytes: float) -> None:
        """Print the line."""
        theirs, ours = (megabytes / seconds for seconds in self.seconds)
        share = 100 * self.agreed / self.documents
        print(
            f"{self.name:20} {ours:8.1f} {theirs:9.2f} {self.ratio:8.1f} {share:10.3f} "
            f"{100 * self.removed / self.documents:8.1f}"
        )


def ours_of(*settings: FilterSettings) -> Callable[[list[str]], list[Outcome]]:
    """Our filters in a row, as the stage runs them."""
    pipeline = Pipeline(None, settings, None)

    def judge(texts: list[str]) -> list[Outcome]:
        batch, removed = pipeline(list(texts), [{"id": n} for n in range(len(texts))])
        found: list[Outcome] = [(None, "")] * len(texts)
        for one in removed:
            found[one.metadata["id"]] = (one.reason.rpartition("/")[2], "")
        for metadata, text in zip(batch.metadata, batch.texts, strict=True):
            found[metadata["id"]] = (None, text)
        return found

    return judge


def theirs_of(*names: str) -> Callable[[list[str]], list[Outcome]]:
    """Their filters in a row; words of a document are kept for the next filter, as they do."""
    from datatrove.data import Document
    from datatrove.pipeline import filters

    chain = [getattr(filters, name)() for name in names]

    def judge(texts: list[str]) -> list[Outcome]:
        return [one(Document(text=text, id="0")) for text in texts]

    def one(document: Any) -> Outcome:
        for judge_one in chain:
            result = judge_one.filter(document)
            if result is not True:
                return result[1], ""
        return None, document.text

    return judge


def edits(function: Callable[[str], str]) -> Callable[[list[str]], list[Outcome]]:
    """A repair of texts, for the table."""
    return lambda texts: [(None, function(text)) for text in texts]


def changes(function: Callable[[str], str]) -> Callable[[list[str]], list[Outcome]]:
    """Whether a text is edited at all: what is put in has another form."""
    return lambda texts: [(None, str(function(text) != text)) for text in texts]


def table() -> list[Row]:
    """What is compared."""
    from datatrove.pipeline.formatters import FTFYFormatter, PIIFormatter

    rows = [Row(s.filter, theirs_of(name), ours_of(s)) for s, name in FILTERS]
    everything = [s for s, _ in FILTERS]
    rows.append(Row("all in a row", theirs_of(*(n for _, n in FILTERS)), ours_of(*everything)))
    repair = Normaliser(NormalizeSettings(unicode=None, fix_line_breaks=False))
    rows.append(Row("ftfy", edits(FTFYFormatter().format), edits(repair), enforced=False))
    scrub = Scrubber(PiiSettings(kinds=["email", "ip"]))
    rows.append(Row("e-mail, ip", changes(PIIFormatter().format), changes(scrub), enforced=False))
    return rows


def read(path: Path, megabytes: float) -> Iterator[list[str]]:
    """The corpus in blocks."""
    block: list[str] = []
    left = megabytes * 1e6
    for line in path.open("rb"):
        block.append(orjson.loads(line)["text"])
        left -= len(block[-1].encode())
        if sum(map(len, block)) >= BLOCK or left <= 0:
            yield block
            block = []
        if left <= 0:
            return
    if block:
        yield block


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megabytes", type=float, default=12)
    parser.add_argument("--corpus", type=Path, help="JSON lines with text; by default built")
    options = parser.parse_args()
    try:
        rows = table()
        theirs_of("GopherQualityFilter")(["some words to load spaCy with"])
    except ImportError as error:
        print(f"skipped: datatrove, or what it needs, is not installed ({error})")
        return 0
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        path = options.corpus or Path(folder, "corpus.jsonl")
        if not options.corpus:
            build_corpus(path, options.megabytes)
        blocks = list(read(path, options.megabytes))
    megabytes = sum(len(text.encode()) for block in blocks for text in block) / 1e6
    print(f"{megabytes:.1f} MB, {sum(map(len, blocks))} documents; one process each\n")
    print("                     ours MB/s  datatrove    ratio  agreement%  removed%")
    held = []
    while rows:
        row = rows.pop(0)
        for block in blocks:
            row.block(block)
        row.show(megabytes)
        held.append(row.holds)
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
