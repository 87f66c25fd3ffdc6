"""Answer loss and preference accuracy: how likely a model finds given answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from toolkit.data.chat_turns import UnusableError
from toolkit.data.conversations import (
    Conversation,
    Preference,
    Tally,
    read_conversations,
    read_preferences,
)
from toolkit.errors import DataError
from toolkit.evaluate.chat import Dialogues
from toolkit.evaluate.config import AnswerLossConfig, PreferencesConfig
from toolkit.evaluate.figures import Figure, Kind, Scored
from toolkit.evaluate.subject import Subject

Row = TypeVar("Row", Conversation, Preference)
Encoded = TypeVar("Encoded")

ANSWER_NOTE = (
    "Answer loss is the mean loss per token, in nats, over the assistant's turns alone, with the "
    "tokens that end them; what comes before is context. Bits per byte divides the same loss by "
    "the answers' UTF-8 bytes. Standard errors take a conversation as the unit."
)
ANSWER_LOSS = Kind("answer_loss", "Answer loss", unit="tokens", better="lower", headline=True)
ANSWER_BITS = Kind("bits_per_byte", "Answer bits per byte", unit="bytes", better="lower")

PREFERENCE_NOTE = (
    "Preference accuracy, the headline, is the share of pairs for which log p(chosen | prompt) is "
    "above log p(rejected | prompt), each summed over the answer's tokens: what DPO optimises, "
    "without the reference model. Per token, the two are divided by the answers' lengths first. "
    "A tie counts as wrong. The margin is the mean difference of the sums, in nats."
)
ACCURACY = Kind(
    "accuracy", "Preference accuracy", unit="pairs", better="higher", headline=True, percent=True
)
ACCURACY_PER_TOKEN = Kind(
    "accuracy_per_token", "Preference accuracy, per token", "pairs", "higher", percent=True
)
MARGIN = Kind("margin", "Preference margin", unit="pairs", better="higher")


def answer_loss(subject: Subject, settings: AnswerLossConfig, source: str) -> list[Scored]:
    """Mean loss per token of the assistant's turns.

    Raises:
        DataError: a row that is no conversation, or nothing to score.
    """
    tally = Tally()
    rows = read_conversations(
        subject.source(source), settings.format, settings.columns, tally=tally
    )
    dialogues = Dialogues(subject.tokenizer, subject.chat_template)
    items = _encoded(rows, dialogues.conversation, settings.max_examples, source, tally)
    losses = subject.score([tokens for _, tokens in items], source)
    over = [loss.total for loss in losses]
    tokens = [float(loss.tokens) for loss in losses]
    bits = [total / math.log(2) for total in over]
    sizes = [float(_answer_bytes(row)) for row, _ in items]
    figures = (Figure(ANSWER_LOSS, over, tokens), Figure(ANSWER_BITS, bits, sizes))
    counts = {
        "conversations": len(items),
        "answer_tokens": int(sum(tokens)),
        "all_tokens": sum(len(encoded.ids) for _, encoded in items),
        "dropped": dict(tally.dropped),
    }
    return [Scored(source, figures, counts)]


def preferences(subject: Subject, settings: PreferencesConfig, source: str) -> list[Scored]:
    """Share of pairs whose chosen answer the model finds likelier.

    Raises:
        DataError: a row that is no pair, or no pairs at all.
    """
    tally = Tally()
    rows = read_preferences(subject.source(source), settings.format, settings.columns, tally=tally)
    dialogues = Dialogues(subject.tokenizer, subject.chat_template)
    items = _encoded(rows, dialogues.pair, settings.max_examples, source, tally)
    losses = subject.score([tokens for _, pair in items for tokens in pair], source)
    sums = [-loss.total for loss in losses]
    means = [-loss.total / loss.tokens for loss in losses]
    margins = [c - r for c, r in zip(sums[::2], sums[1::2], strict=True)]
    ones = [1.0] * len(items)
    by_mean = [float(c > r) for c, r in zip(means[::2], means[1::2], strict=True)]
    figures = (
        Figure(ACCURACY, [float(margin > 0) for margin in margins], ones),
        Figure(ACCURACY_PER_TOKEN, by_mean, ones),
        Figure(MARGIN, margins, ones),
    )
    counts: Mapping[str, object] = {
        "pairs": len(items),
        "ties": sum(margin == 0 for margin in margins),
        "answer_tokens": sum(loss.tokens for loss in losses),
        "dropped": dict(tally.dropped),
    }
    return [Scored(source, figures, counts)]


def _answer_bytes(row: Conversation) -> int:
    return sum(len(m["content"].encode()) for m in row.messages if m["role"] == "assistant")


def _encoded(
    rows: Iterable[Row],
    encode: Callable[[Row], Encoded],
    limit: int | None,
    source: str,
    tally: Tally,
) -> list[tuple[Row, Encoded]]:
    """The first ``limit`` rows that can be scored, with their tokens; others are counted."""
    found: list[tuple[Row, Encoded]] = []
    for row in rows:
        if len(found) == limit:
            break
        try:
            found.append((row, encode(row)))
        except UnusableError as reason:
            tally.drop(str(reason), row.where)
    if not found:
        raise DataError("nothing to score: no usable row", where=source)
    tally.warn()
    return found
