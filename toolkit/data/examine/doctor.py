"""Whether a dataset is what was written: its structure, its tokens, its checksums, its tokenizer.

The structure is checked by what the format says twice (lengths and offsets, sizes and counts), the
tokens against the vocabulary and the end of documents. A token that was changed to another one of
the vocabulary is told by checksums alone: in a dataset without a manifest it is not found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from toolkit.artifacts import sha256
from toolkit.data.examine.companions import examine_mask, examine_rest
from toolkit.data.examine.content_checks import Expected, Tally, check_tokens
from toolkit.data.examine.findings import Advance, Finding, Place, Status
from toolkit.data.examine.index_checks import Index
from toolkit.data.examine.locate import Dataset
from toolkit.data.examine.structure import Examination, check_structure, collect
from toolkit.data.indexed import bin_path, idx_path
from toolkit.data.tokenizer_folder import TokenizerFolder
from toolkit.errors import DataError

Opened = TokenizerFolder | DataError | None
"""A tokenizer, why it can't be read, or None where none is known."""


def examine(
    datasets: Sequence[Dataset],
    advance: Advance,
    *,
    tokenizer: Path | None = None,
    subset: bool = False,
) -> list[Examination]:
    """Examine datasets with their loss masks, and the other files of their artifacts.

    Args:
        datasets: see ``locate``.
        advance: told the bytes of tokens as they are read.
        tokenizer: a folder to hold the datasets against, rather than their artifact's.
        subset: whether an index may name parts of its ``.bin``; of one that a link shares with
            another index, or that a stage recorded, this is taken for granted.

    Raises:
        DataError: there is no such tokenizer.
    """
    found = []
    opened: dict[Path | None, Opened] = {}
    for dataset in datasets:
        folder = dataset.artifact.folder if dataset.artifact else None
        if folder not in opened:  # once for all shards: a large vocabulary takes a second
            opened[folder] = _open(dataset, tokenizer)
        found.append(collect(dataset, _checks(dataset, opened[folder], advance, subset)))
        if dataset.mask is not None:
            found.append(examine_mask(dataset, dataset.mask, advance))
    artifacts = {d.artifact.folder: d.artifact for d in datasets if d.artifact}
    found += [examine_rest(a) for a in artifacts.values() if a.files]
    return found


def _open(dataset: Dataset, given: Path | None) -> Opened:
    """The tokenizer to compare with; of an artifact's own that can't be read, why."""
    try:
        return dataset.tokenizer(given)
    except DataError as error:
        if given is not None:
            raise
        return error


def sizes(datasets: Sequence[Dataset]) -> int:
    """Bytes of tokens and masks that ``examine`` reads."""
    prefixes = [p for d in datasets for p in (d.prefix, d.mask) if p is not None]
    return sum(bin_path(p).stat().st_size for p in prefixes if bin_path(p).is_file())


def _checks(
    dataset: Dataset, tokenizer: Opened, advance: Advance, subset: bool
) -> Iterator[Finding]:
    index, contiguous = yield from check_structure(dataset, subset)
    yield from _manifest(dataset, index)
    if isinstance(tokenizer, DataError):
        yield Finding("tokenizer", "fail", tokenizer.message, Place(str(tokenizer.where)))
        return
    yield _tokenizer(dataset, tokenizer)
    if np.dtype(index.header.dtype).kind == "f":
        yield Finding("tokens", "skip", "these are no token ids but fractions")
        return
    expected = _expected(dataset, index, tokenizer)
    tally, hashes = check_tokens(index, expected, advance, contiguous=contiguous)
    yield from _content(index, expected, tally)
    yield from hashes or [
        Finding("checksum", "skip", "no manifest: a token changed to another is not found")
    ]


def _manifest(dataset: Dataset, index: Index) -> Iterator[Finding]:
    """What the artifact records of the index, its file and its dtype."""
    entry = dataset.entry(idx_path(dataset.prefix))
    if entry is not None and entry.sha256 != (found := sha256(idx_path(dataset.prefix))):
        place = Place(index.name, None, None, f"sha256 {entry.sha256[:16]}...", f"{found[:16]}...")
        yield Finding("manifest", "fail", "the index is not the one that was written", place)
    recorded, found = dataset.recorded("dtype"), np.dtype(index.header.dtype).name
    if recorded and recorded != found:
        place = Place(index.name, 17, None, recorded, found)
        yield Finding("manifest", "fail", "the tokens have another dtype than recorded", place)
    if entry is not None:
        yield Finding("manifest", "ok", "the index has its recorded sha256")


def _tokenizer(dataset: Dataset, tokenizer: TokenizerFolder | None) -> Finding:
    """Whether the tokenizer is the one that made the tokens."""
    recorded = dataset.recorded("tokenizer_sha256")
    if tokenizer is None:
        why = "no tokenizer is known; --tokenizer names one"
        return Finding("tokenizer", "skip", why)
    size, folder = dataset.recorded("vocab_size"), str(tokenizer.folder)
    if recorded and recorded != tokenizer.sha256:
        expected, found = f"sha256 {recorded[:16]}...", f"{tokenizer.sha256[:16]}..."
        detail = f"the dataset was made with another tokenizer than the one in {folder}"
        return Finding("tokenizer", "fail", detail, Place(folder, None, None, expected, found))
    if size and size != tokenizer.vocab_size:
        detail = f"the tokenizer in {folder} has another vocabulary than recorded"
        place = Place(folder, None, None, f"{size:,} tokens", f"{tokenizer.vocab_size:,}")
        return Finding("tokenizer", "fail", detail, place)
    known = "its sha256 is the recorded one" if recorded else "none is recorded to compare it with"
    return Finding("tokenizer", "ok", f"{tokenizer.vocab_size:,} tokens; {known}")


def _expected(dataset: Dataset, index: Index, tokenizer: TokenizerFolder | None) -> Expected:
    size, eod = dataset.recorded("vocab_size"), dataset.recorded("eod_id")
    if tokenizer is not None:
        size = tokenizer.vocab_size
        if dataset.artifact is None and (named := tokenizer.eos_token()) is not None:
            eod = tokenizer.vocabulary.get(named)
    entry = dataset.entry(bin_path(dataset.prefix))
    made = dataset.artifact.kind if dataset.artifact else ""
    return Expected(
        vocab_size=size,
        eod_id=eod,
        ends_with_eod=made == "tokenize" and eod is not None,
        sha256=entry.sha256 if entry else None,
        pieces=_pieces(dataset, index),
    )


def _pieces(dataset: Dataset, index: Index) -> tuple[tuple[str, int, str], ...]:
    """The shards that the ``.bin`` was merged from, or that it is; none where that is not known."""
    shards, name = dataset.recorded("shards") or [], dataset.prefix.name
    for shard in shards:
        for inner, xxh3 in shard["bin_xxh3"].items():
            if name.endswith(f"{inner}_{shard['key']}"):
                return ((shard["key"], index.bin_size, xxh3),)
    found = tuple(
        (s["key"], s["tokens"] * index.itemsize, s["bin_xxh3"][name])
        for s in shards
        if name in s["bin_xxh3"]
    )
    return found if sum(size for _, size, _ in found) == index.bin_size else ()


def _content(index: Index, expected: Expected, tally: Tally) -> Iterator[Finding]:
    """What the tokens say, once all are read."""
    if tally.highest is not None:
        size = expected.vocab_size
        bound = f"below the vocabulary of {size:,}" if size else "no vocabulary is known"
        status: Status = "ok" if size else "skip"
        yield Finding("vocabulary", status, f"highest id {tally.highest:,}, {bound}")
    yield _end_of_documents(index, expected, tally)
    if tally.empty:
        whole = tally.documents + tally.empty
        detail = f"{tally.empty:,} of {whole:,} documents have no token"
        yield Finding("empty documents", "note", detail)
    else:
        yield Finding("empty documents", "ok", "none")


def _end_of_documents(index: Index, expected: Expected, tally: Tally) -> Finding:
    eod = expected.eod_id
    if eod is None:
        return Finding("end of document", "skip", "no token is known that ends documents")
    share = tally.eod_ends / tally.documents if tally.documents else 1.0
    detail = f"{share:.2%} of {tally.documents:,} documents end with token {eod}"
    if tally.eod_within:
        detail += f"; {tally.eod_within:,} more are inside documents"
    if tally.other_end is None:
        return Finding("end of document", "note" if tally.eod_within else "ok", detail)
    document, position, token = tally.other_end
    place = Place(
        bin_path(index.prefix).name,
        position * index.itemsize,
        document,
        f"token {eod}",
        f"token {token}",
    )
    status: Status = "fail" if expected.ends_with_eod else "note"
    return Finding("end of document", status, detail, place)
