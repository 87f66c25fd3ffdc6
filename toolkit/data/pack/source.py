"""What ``pack`` packs: conversations that its tasks have tokenized, or a dataset's documents."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.artifacts import link_tree, write_text
from toolkit.context import StageContext
from toolkit.data.chat_account import log_account, require_learnable
from toolkit.data.inputs import expand_inputs
from toolkit.data.pack import chat as chats
from toolkit.data.pack.chat import Account, Chat, ChatShard
from toolkit.data.pack.config import TOKENIZE, PackConfig
from toolkit.data.pack.dataset import Dataset, open_dataset
from toolkit.data.pack.examples import Pair, too_long
from toolkit.data.planning import remember_sources
from toolkit.data.shards import plan_shards
from toolkit.data.task_checks import verify
from toolkit.data.tasks import Task, TaskResult, results
from toolkit.data.tokenizer_folder import (
    CHAT_TEMPLATE,
    TOKENIZER_CONFIG,
    TokenizerFolder,
    open_tokenizer,
    take_tokenizer,
)
from toolkit.errors import DataError

logger = logging.getLogger(__name__)

SHARD_BYTES = 16 << 20
"""Of conversations, for each task: rendering and masking every row takes its time."""
CARRIED = ("eod_id", "bytes_per_token", "tokenizer_sha256")
"""What is true of a packed dataset as of the one that was packed."""
WHOLE = ""
"""Stands for the part of data of which nothing is held out."""


@dataclass(frozen=True)
class Source:
    """What is packed, wherever it came from."""

    parts: Mapping[str, Sequence[Pair]]
    """By ``train``, ``valid`` and ``test``, or all under ``WHOLE``."""
    tokenizer: TokenizerFolder
    vocab_size: int
    info: Mapping[str, Any]
    """For the artifact: of the rows, or of the dataset."""
    lost_tokens: int = 0
    overlong: int = 0
    """Examples longer than a row: of conversations, which are cut while they are tokenized."""


def chat_tasks(config: PackConfig, context: StageContext) -> list[Task]:
    """The shards of conversations to tokenize; none where a dataset is packed."""
    if not config.data:
        return []
    chat, sources = _chat(config, context), expand_inputs(config.data, context)
    remember_sources(sources, context)
    shards = plan_shards(sources, SHARD_BYTES)
    return [Task(f"{s.index:05}", ChatShard(s.parts, chat), s.size) for s in shards]


def _chat(config: PackConfig, context: StageContext) -> Chat:
    assert config.tokenizer is not None
    template = config.chat_template_path
    return Chat.of(
        config, context.path(config.tokenizer), context.path(template) if template else None
    )


def open_source(
    config: PackConfig, context: StageContext, tasks: Sequence[Task], built: Path
) -> Source:
    """Find what is to be packed, and copy its tokenizer to ``built/tokenizer``.

    Raises:
        DataError: rows that are too long (``overflow: error``) or teach nothing; a shard that is
            not as it was written; a dataset that is packed or blended.
        StageError: conversations that are not tokenized yet.
    """
    if not tasks:
        return _documents(config, context, built)
    found = results(TOKENIZE, tasks, context)
    verify(found, context)
    rows, account = _account(config, found)
    chat = _chat(config, context)
    tokenizer = take_tokenizer(chat.tokenizer, built / "tokenizer")
    _, template = chats.load(chat)
    if template.saved and template.text is not None:
        write_text(tokenizer.folder / CHAT_TEMPLATE, template.text)
    sources = expand_inputs(config.data, context)
    named = [{"name": s.name, "size": s.size, "mtime_ns": s.mtime_ns} for s in sources]
    return Source(
        {WHOLE: [Pair(r.path(chats.TOKENS), r.path(chats.MASKS)) for r in found]},
        tokenizer,
        tokenizer.vocab_size,
        {"data": rows, "sources": named, "tokenizer_sha256": tokenizer.sha256},
        lost_tokens=account.counts.cut_tokens + account.untrained_tokens,
        overlong=account.overlong,
    )


def _account(config: PackConfig, found: Sequence[TaskResult]) -> tuple[dict[str, Any], Account]:
    account = functools.reduce(Account.__add__, [Account.of(result.info) for result in found])
    counts = account.counts
    rows = counts.as_account(account.tally) | {"example": account.example}
    require_learnable(rows, "rows", ", ".join(config.data), limit="seq_length")
    log_account(rows, "rows", limit="seq_length")
    if account.overlong and config.overflow == "error":
        numbers = (account.overlong, counts.rows, counts.longest, config.seq_length)
        raise too_long(*numbers, account.overflowing, account.longest_where)
    if account.untrained_tokens:
        lost = f"{account.untrained_tokens:,}"
        logger.warning("%s tokens lost: pieces of long rows with nothing to train on", lost)
    return rows, account


def _documents(config: PackConfig, context: StageContext, built: Path) -> Source:
    assert config.dataset is not None
    found = open_dataset(context.artifact(config.dataset))
    _refuse_packed_or_blended(found)
    link_tree(found.tokenizer, built / "tokenizer")
    parts = found.splits or {WHOLE: found.prefixes}
    pairs = {part: [Pair(p, found.mask_of(p)) for p in own] for part, own in parts.items() if own}
    carried = {key: found.info[key] for key in CARRIED if key in found.info}
    tokenizer = open_tokenizer(built / "tokenizer")
    return Source(pairs, tokenizer, int(found.info["vocab_size"]), carried)


def _refuse_packed_or_blended(found: Dataset) -> None:
    if found.packed_length is not None:
        raise DataError("the dataset is packed already", where=str(found.folder))
    if found.weights is not None:
        raise DataError(
            "a blend can't be packed: its weights would be lost",
            where=str(found.folder),
            hint="pack each of its datasets, and blend what comes out; of one tokenize stage, "
            "leave out weights",
        )


def pad_token_id(named: str | None, tokenizer: TokenizerFolder) -> int:
    """The token that fills rows up: the one named, the tokenizer's pad_token, eos_token, or 0.

    Its mask is 0, so any token of the vocabulary will do.

    Raises:
        ToolkitError: the vocabulary hasn't the one that is named.
    """
    if named is not None:
        return tokenizer.id_of(named, "pad_token")
    path = tokenizer.folder / TOKENIZER_CONFIG
    pad = json.loads(path.read_text(encoding="utf-8")).get("pad_token") if path.is_file() else None
    pad = pad["content"] if isinstance(pad, dict) else pad
    return tokenizer.vocabulary.get(pad or tokenizer.eos_token() or "", 0)
