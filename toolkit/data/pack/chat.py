"""Conversations to tokens and loss masks, shard by shard: what a worker of ``pack`` does."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from toolkit.artifacts import sha256
from toolkit.data.chat_account import Counts
from toolkit.data.chat_formats import Conversation
from toolkit.data.chat_template import Template, choose_template
from toolkit.data.chat_tokens import IGNORED, ChatTokenizer, Tokens
from toolkit.data.chat_turns import UnusableError, message
from toolkit.data.conversations import Tally, conversations_of, preferences_of
from toolkit.data.indexed import IndexedWriter
from toolkit.data.pack.config import PackConfig
from toolkit.data.pack.examples import Overflow
from toolkit.data.pack.rows import MASK_VALUES
from toolkit.data.readers import RecordReader
from toolkit.data.shards import Part
from toolkit.data.tasks import TaskOutput
from toolkit.data.tokenizer_folder import CARRIED, TOKENIZER_JSON
from toolkit.errors import DataError

TOKENS, MASKS = "tokens", "loss_mask"
"""The pairs of files that a shard makes."""
BATCH = 1000
"""Rows between two writes and reports of progress."""


@dataclass(frozen=True)
class Chat:
    """How rows become tokens: plain values, for they are part of a task's fingerprint."""

    tokenizer: Path
    chat_template: str
    chat_template_path: Path | None
    rows: str
    format: str
    columns: tuple[tuple[str, str], ...]
    on_error: str
    seq_length: int
    overflow: Overflow
    contents: str
    """A hash of the tokenizer's files and the template's: tasks done with others are other work."""

    @classmethod
    def of(cls, config: PackConfig, tokenizer: Path, template: Path | None) -> Chat:
        """What the settings say, with the paths that references stand for."""
        return cls(
            tokenizer=tokenizer,
            chat_template=config.chat_template,
            chat_template_path=template,
            rows=config.rows,
            format=config.format,
            columns=tuple((config.columns or {}).items()),
            on_error=config.on_error,
            seq_length=config.seq_length,
            overflow=config.overflow,
            contents=_hash(
                [tokenizer / name for name in CARRIED] + ([template] if template else [])
            ),
        )


def _hash(paths: Sequence[Path]) -> str:
    """Of the names and contents of those files that are there."""
    known = [(path.name, sha256(path)) for path in paths if path.is_file()]
    return hashlib.sha256(repr(known).encode()).hexdigest()


@dataclass(frozen=True)
class ChatShard:
    """The payload of a task."""

    parts: tuple[Part, ...]
    chat: Chat


@dataclass
class Account:
    """What became of the rows of some shards."""

    tally: Tally
    counts: Counts
    overlong: int = 0
    """Rows longer than a packed row."""
    overflowing: int = 0
    """Their tokens beyond its length."""
    longest_where: str = ""
    untrained_tokens: int = 0
    """Tokens of pieces that were left out, having nothing to train on (``overflow: split``)."""
    example: str = ""
    """The first row as text, what is trained in ``[[ ]]``."""

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> Account:
        """From the plain values of ``as_info``, as JSON gives them back."""
        tally, counts = dict(info["tally"]), dict(info["counts"])
        tally |= {name: Counter(tally[name]) for name in ("formats", "dropped")}
        counts["ends"] = Counter({int(token): n for token, n in counts["ends"].items()})
        return cls(**{**info, "tally": Tally(**tally), "counts": Counts(**counts)})

    def as_info(self) -> dict[str, Any]:
        """Plain values, for a task's sidecar."""
        return {**vars(self), "tally": vars(self.tally), "counts": vars(self.counts)}

    def __add__(self, other: Account) -> Account:
        """Of both; the first example stays."""
        longest = self if self.counts.longest >= other.counts.longest else other
        return Account(
            self.tally + other.tally,
            self.counts + other.counts,
            self.overlong + other.overlong,
            self.overflowing + other.overflowing,
            longest.longest_where,
            self.untrained_tokens + other.untrained_tokens,
            self.example or other.example,
        )


@functools.lru_cache(maxsize=1)
def load(chat: Chat) -> tuple[Any, Template]:
    """The tokenizer, and the template that the settings choose.

    Raises:
        ToolkitError: there is none, or they don't go together.
    """
    if not (chat.tokenizer / TOKENIZER_JSON).is_file():
        raise DataError(
            f"no {TOKENIZER_JSON}: chat templates and masks need a fast tokenizer of transformers",
            where=str(chat.tokenizer),
            hint="load it with transformers' AutoTokenizer, compare its tokens, and save it with"
            " save_pretrained",
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(chat.tokenizer, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"transformers can't read the tokenizer: {error}", where=str(chat.tokenizer)
        ) from error
    return tokenizer, choose_template(tokenizer, chat.chat_template, chat.chat_template_path)


def tokenize(shard: ChatShard, output: TaskOutput) -> dict[str, Any]:
    """Write a shard's rows as ``tokens`` and ``loss_mask`` pairs, one sequence a row (or piece).

    Returns:
        An ``Account``, as plain values.

    Raises:
        DataError: a malformed row, unless these are dropped; or the template refuses one.
    """
    chat = shard.chat
    tokenizer, template = load(chat)
    limit = chat.seq_length if chat.overflow == "truncate" else None
    chat_tokenizer = ChatTokenizer(tokenizer, template.text, limit)
    account = Account(Tally(), Counts())
    drop = account.tally.drop_bad if chat.on_error == "drop" else None
    reader = RecordReader(shard.parts, drop)
    examples = _examples(_rows(reader, chat, account.tally), chat_tokenizer, chat, account)
    with (
        IndexedWriter(output.path(TOKENS), max(tokenizer.get_vocab().values()) + 1) as tokens,
        IndexedWriter(output.path(MASKS), MASK_VALUES, np.uint8) as masks,
    ):
        while batch := list(islice(examples, BATCH)):
            lengths = np.array([len(ids) for ids, _ in batch], np.int64)
            tokens.write(np.concatenate([ids for ids, _ in batch]), lengths)
            masks.write(np.concatenate([mask for _, mask in batch]), lengths)
            output.progress(reader.bytes_read, rows=account.counts.rows, tokens=tokens.tokens)
    return account.as_info()


def _rows(reader: RecordReader, chat: Chat, tally: Tally) -> Iterator[Conversation]:
    """The rows to train on; of a preference, the conversation that ends with the chosen answer."""
    on_error: Any = chat.on_error
    columns = dict(chat.columns) or None
    if chat.rows == "conversations":
        yield from conversations_of(reader, chat.format, columns, on_error=on_error, tally=tally)
        return
    pairs = preferences_of(reader, chat.format, columns, on_error=on_error, tally=tally)
    for pair in pairs:
        yield Conversation((*pair.prompt, message("assistant", pair.chosen)), pair.where)


Example = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


def _examples(
    rows: Iterator[Conversation], tokenizer: ChatTokenizer, chat: Chat, account: Account
) -> Iterator[Example]:
    """Tokens and mask of every row, or of its pieces; everything is counted."""
    for row in rows:
        try:
            tokens = tokenizer.conversation(row)
        except UnusableError as reason:
            account.tally.drop(str(reason), row.where)
            continue
        account.example = account.example or tokenizer.marked_text(tokens)
        length = len(tokens.input_ids) + tokens.cut
        if length > account.counts.longest:
            account.longest_where = row.where
        account.counts.add_row(tokens)
        account.overlong += length > chat.seq_length
        account.overflowing += max(0, length - chat.seq_length)
        yield from _pieces(tokens, chat, account)


def _pieces(tokens: Tokens, chat: Chat, account: Account) -> Iterator[Example]:
    ids = np.array(tokens.input_ids, np.int64)
    mask = (np.array(tokens.labels, np.int64) != IGNORED).astype(np.uint8)
    step = chat.seq_length if chat.overflow == "split" else len(ids)
    for start in range(0, len(ids), step):
        piece = slice(start, start + step)
        if mask[piece][1:].any():
            yield ids[piece], mask[piece]
        else:
            account.untrained_tokens += len(ids[piece])
