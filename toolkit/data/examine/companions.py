"""What goes with the tokens of an artifact: loss masks, and all other files."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from toolkit.artifacts import Artifact, sha256
from toolkit.data.examine.content_checks import Expected, check_tokens
from toolkit.data.examine.findings import Advance, Finding, Place
from toolkit.data.examine.index_checks import Index, check_header
from toolkit.data.examine.locate import Dataset, datasets_in
from toolkit.data.examine.structure import Examination, check_structure, collect
from toolkit.data.indexed import bin_path, idx_path


def examine_mask(dataset: Dataset, mask: Path, advance: Advance) -> Examination:
    """A loss mask: zeros and ones, with the very lengths and documents of the tokens."""
    found = Dataset(mask, dataset.artifact)
    return collect(found, _mask_checks(dataset, found, advance))


def _mask_checks(dataset: Dataset, mask: Dataset, advance: Advance) -> Iterator[Finding]:
    index, contiguous = yield from check_structure(mask, subset=False)
    tokens, _ = check_header(dataset.prefix)
    yield _parallel(tokens, index)
    entry = mask.entry(bin_path(mask.prefix))
    expected = Expected(vocab_size=2, sha256=entry.sha256 if entry else None)
    tally, hashes = check_tokens(index, expected, advance, contiguous=contiguous)
    yield Finding("vocabulary", "ok", f"zeros and ones, highest {tally.highest}")
    yield from hashes


def _parallel(tokens: Index, mask: Index) -> Finding:
    """Whether both have the same sequences and documents: the arrays of lengths and boundaries."""
    one, two = tokens.header, mask.header
    pairs = (
        ("sequences", one.sequences, two.sequences),
        ("documents", one.documents, two.documents),
    )
    for name, expected, found in pairs:
        if expected != found:
            place = Place(mask.name, 18, None, f"{expected:,} {name}", f"{found:,}")
            return Finding("parallel", "fail", "the mask is not that of these tokens", place)
    arrays = (
        (tokens.lengths(0, one.sequences), mask.lengths(0, one.sequences), 34, 4),
        (
            tokens.boundaries(0, one.documents + 1),
            mask.boundaries(0, one.documents + 1),
            mask.boundaries_at,
            8,
        ),
    )
    for expected_, found_, begin, width in arrays:
        if (wrong := expected_ != found_).any():
            at = int(np.argmax(wrong))
            place = Place(
                mask.name, begin + width * at, None, str(int(expected_[at])), str(int(found_[at]))
            )
            return Finding("parallel", "fail", "the mask is not that of these tokens", place)
    return Finding("parallel", "ok", "the mask has the lengths of the tokens")


def examine_rest(artifact: Artifact) -> Examination:
    """The files of an artifact besides tokens and masks: the tokenizer, the quarantine."""
    prefixes = [p for d in datasets_in(artifact) for p in (d.prefix, d.mask) if p is not None]
    done = {path(p) for p in prefixes for path in (bin_path, idx_path)}
    rest = [f for f in artifact.files if artifact.path(f.path) not in done]
    started = time.monotonic()
    for entry in rest:
        path = artifact.path(entry.path)
        if not path.is_file():
            found = "no such file"
        elif (size := path.stat().st_size) != entry.size:
            found = f"{size:,} bytes"
        elif (digest := sha256(path)) != entry.sha256:
            found = f"sha256 {digest[:16]}..."
        else:
            continue
        expected = f"{entry.size:,} bytes, sha256 {entry.sha256[:16]}..."
        place = Place(entry.path, None, None, expected, found)
        finding = Finding("other files", "fail", "a file is not the one that was written", place)
        break
    else:
        finding = Finding("other files", "ok", f"{len(rest)} have their recorded sha256")
    return Examination(str(artifact.folder), (finding,), 0, time.monotonic() - started)
