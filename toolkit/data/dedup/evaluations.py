"""The index of evaluation data: hashed n-grams of its items, and their words.

An item is a record: the texts of its keys, one after another, so that an n-gram may begin in the
question and end in the answer. Items of fewer words than n are in the index as a whole, those of
fewer than ``min_words`` not at all.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from toolkit.context import StageContext
from toolkit.data.dedup.arrays import Array, distinct
from toolkit.data.dedup.config import DecontaminateSettings
from toolkit.data.dedup.shingles import shingles_of
from toolkit.data.dedup.words import Hashes, Words, batches, split_words
from toolkit.data.files import Source
from toolkit.data.inputs import expand_inputs
from toolkit.data.keys import MISSING, getter, key_paths
from toolkit.data.readers import RecordReader
from toolkit.data.records import Record, key_problem
from toolkit.data.tasks import TaskOutput
from toolkit.errors import DataError

logger = logging.getLogger(__name__)

GRAMS = "grams.bin"
GRAM = np.dtype([("hash", "<u8"), ("item", "<u4"), ("begin", "<i8"), ("end", "<i8")])
"""The n-grams, sorted by their hashes: of which item, and from where to where in ``WORDS``."""
WORDS, ITEMS, DESCRIPTION = "words.txt", "items.bin", "index.json"
"""All items' words; u32[items, 3]: file, number of the record, and words of each item; the rest."""


@dataclass(frozen=True)
class IndexTask:
    """Evaluation files to index."""

    settings: DecontaminateSettings
    evaluations: tuple[Source, ...]
    ignore: tuple[Source, ...]


def index_task(settings: DecontaminateSettings, context: StageContext) -> IndexTask:
    """What ``write_index`` is to do for these settings.

    Raises:
        DataError: see ``expand_inputs``.
    """
    evaluations = expand_inputs(settings.evaluations, context)
    ignore = expand_inputs(settings.ignore, context) if settings.ignore else []
    return IndexTask(settings, tuple(evaluations), tuple(ignore))


def write_index(task: IndexTask, output: TaskOutput) -> dict[str, Any]:
    """Read the evaluation files, and write their index.

    Raises:
        DataError: a file can't be read, or a record lacks one of the keys.
    """
    settings = task.settings
    items = list(_items(task.evaluations, settings.keys))
    rows: list[Array] = [np.zeros(0, GRAM)]
    sizes: list[int] = []
    with output.path(WORDS).open("wb") as text:
        for batch in batches([item.text for item in items]):
            words = split_words(batch)
            rows.append(_grams(words, settings, len(sizes), text.tell()))
            text.write(words.joined(0, len(words.starts)) + b" ")
            sizes += np.diff(words.offsets).tolist()
    lengths = sorted({min(s, settings.ngram) for s in sizes if s >= settings.min_words})
    grams = np.concatenate(rows)
    grams = grams[~np.isin(grams["hash"], _ignored(task.ignore, lengths))]
    grams = grams[np.argsort(grams["hash"], kind="stable")]
    grams.tofile(output.path(GRAMS))
    table = [(item.file, item.number, size) for item, size in zip(items, sizes, strict=True)]
    np.array(table, np.uint32).tofile(output.path(ITEMS))
    files = [source.name for source in task.evaluations]
    description = {"files": files, "lengths": lengths, **settings.model_dump()}
    output.path(DESCRIPTION).write_text(json.dumps(description), encoding="utf-8")
    if not len(grams):
        logger.warning("no evaluation item has %d words: nothing can match", settings.min_words)
    return {"items": len(items), "ngrams": len(distinct(grams["hash"]))}


class _Item(NamedTuple):
    text: str
    file: int
    number: int


def _items(sources: Sequence[Source], keys: Sequence[str] | None) -> Iterator[_Item]:
    for file, source in enumerate(sources):
        for record in RecordReader([source]):
            yield _Item(_text(record, keys), file, record.number)


def _text(record: Record, keys: Sequence[str] | None) -> str:
    """The texts of a record's keys, lists of texts (choices) too; without keys, all there are."""
    names = keys or key_paths(record.value)
    found = [(name, getter(name)(record.value)) for name in names]
    texts: list[str] = []
    for name, value in found:
        here = value if isinstance(value, list) else [value]
        if keys and not all(isinstance(text, str) for text in here):
            raise DataError(_no_text(name, value, record), where=record.where)
        texts += [text for text in here if isinstance(text, str)]
    return "\n".join(texts)


def _no_text(key: str, value: Any, record: Record) -> str:
    if value is MISSING:
        return key_problem(key, key_paths(record.value))
    return f"the value of {key!r} is {str(value)[:40]!r}, neither a text nor a list of texts"


def _grams(words: Words, settings: DecontaminateSettings, before: int, shift: int) -> Array:
    """The n-grams of a batch of items.

    Args:
        words: of the items.
        settings: how many words an n-gram has, and an item at least.
        before: the number of the first item.
        shift: where the batch's words begin in ``WORDS``.
    """
    shingles = shingles_of(words.hashes(), words.offsets, settings.ngram)
    owners = np.repeat(np.arange(len(shingles.counts)), shingles.counts)
    sizes = np.diff(words.offsets)[owners]
    first = words.offsets[owners] + np.arange(len(owners)) - shingles.offsets[owners]
    last = first + np.minimum(sizes, settings.ngram) - 1
    lengths = words.ends - words.starts
    begins = shift + np.cumsum(lengths + 1) - lengths - 1
    grams = np.empty(len(owners), GRAM)
    grams["hash"], grams["item"] = shingles.hashes, owners + before
    grams["begin"], grams["end"] = begins[first], begins[last] + lengths[last]
    return grams[sizes >= settings.min_words]


def _ignored(sources: Sequence[Source], lengths: Sequence[int]) -> Hashes:
    """The hashes of all n-grams in these files, for each n."""
    found: list[Hashes] = [np.zeros(0, np.uint64)]
    if sources:
        texts = [_text(record, None) for record in RecordReader(sources)]
        for batch in batches(texts):
            words = split_words(batch)
            found += [shingles_of(words.hashes(), words.offsets, n).hashes for n in lengths]
    return distinct(np.concatenate(found))
