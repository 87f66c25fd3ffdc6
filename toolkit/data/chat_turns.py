"""Turns of a conversation: who says what, read strictly."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any, Literal, TypedDict, cast

from toolkit.errors import DataError

Role = Literal["system", "user", "assistant"]


class Message(TypedDict):
    """One turn, in the shape that chat templates take."""

    role: Role
    content: str


Messages = tuple[Message, ...]


class UnusableError(Exception):
    """A row that is well formed, but nothing can be learnt from it; the message is the reason.

    Reasons are counted, so they hold nothing of the row itself.
    """


ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
}
"""What files call the roles (OpenAI, ShareGPT, Gemma), and what they are."""

SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):[ \t]?")
"""Begins a turn of a transcript. Only a speaker after an empty line, or at the very start, does:
``Human:`` within a text, or at the start of one of its lines, is text."""
SPEAKERS: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}


def message(role: Role, content: str) -> Message:
    """A turn."""
    return Message(role=role, content=content)


def read_turns(value: Any, key: str, where: str) -> Messages:
    """The turns of a list such as OpenAI's ``messages`` or ShareGPT's ``conversations``.

    Raises:
        DataError: naming the turn, its keys or its role, and what is expected there.
    """
    if not isinstance(value, list) or not value:
        kind = "an empty list" if value == [] else type(value).__name__
        raise DataError(f"{key!r} is {kind}; a list of turns was expected", where=where)
    return tuple(_read_turn(turn, f"{key}[{n}]", where) for n, turn in enumerate(value))


def _read_turn(turn: Any, place: str, where: str) -> Message:
    if not isinstance(turn, dict):
        raise DataError(f"{place} is {type(turn).__name__}, not an object", where=where)
    for role_key, content_key in (("role", "content"), ("from", "value")):
        if role_key in turn and content_key in turn:
            break
    else:
        raise DataError(
            f"{place} has the keys {keys_of(turn)}",
            where=where,
            hint="a turn has role and content, or from and value",
        )
    if turn.get("tool_calls") or turn.get("function_call"):
        raise DataError(f"{place} calls a tool; tool calls can't be trained on yet", where=where)
    role = ROLES.get(str(turn[role_key]).lower())
    if role is None:
        raise DataError(
            f"{place} has the unknown role {turn[role_key]!r}",
            where=where,
            hint=f"roles are: {', '.join(ROLES)}",
        )
    return message(role, read_text(turn[content_key], f"{place}.{content_key}", where))


def read_text(value: Any, key: str, where: str) -> str:
    """A string, or the text parts of OpenAI's content lists, joined.

    Raises:
        DataError: it is something else, or has a part that is no text.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value:
        return "".join(_text_part(part, f"{key}[{n}]", where) for n, part in enumerate(value))
    raise DataError(f"{key!r} is {type(value).__name__}; a string was expected", where=where)


def _text_part(part: Any, key: str, where: str) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return cast("str", part["text"])
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    raise DataError(f"{key} is no text but {kind!r}; only text can be trained on", where=where)


def is_transcript(text: str) -> bool:
    """Whether a text begins as Anthropic's transcripts do, with ``Human:`` or ``Assistant:``."""
    return SPEAKER.match(text) is not None


def read_transcript(text: str) -> Messages:
    r"""The turns of ``"\n\nHuman: ...\n\nAssistant: ..."``.

    Raises:
        UnusableError: the same speaker begins twice in a row. Whether the second one is a turn or
            part of the first one's text can't be known.
    """
    _, *pieces = SPEAKER.split(text)
    speakers, texts = pieces[::2], pieces[1::2]
    if any(a == b for a, b in itertools.pairwise(speakers)):
        raise UnusableError("a transcript in which one speaker begins twice in a row")
    return tuple(
        message(SPEAKERS[who], said.strip()) for who, said in zip(speakers, texts, strict=True)
    )


def check_turns(messages: Sequence[Message], where: str) -> None:
    """Require an optional system turn, then user and assistant in turn, the user first.

    Raises:
        DataError: naming the first turn that is out of order.
        UnusableError: no turn of the assistant, or a turn without text.
    """
    expected: Role = "user"
    for number, turn in enumerate(messages):
        if number == 0 and turn["role"] == "system":
            continue
        if turn["role"] != expected:
            raise DataError(
                f"turn {number + 1} is the {turn['role']}'s where the {expected}'s was expected",
                where=where,
                hint="after an optional system turn, user and assistant alternate, the user first",
            )
        if not turn["content"].strip():
            raise UnusableError(f"a turn of the {expected} without text")
        expected = "assistant" if expected == "user" else "user"
    if not any(turn["role"] == "assistant" for turn in messages):
        raise UnusableError("no turn of the assistant")


def keys_of(record: dict[str, Any]) -> str:
    """The keys of a record, for an error message."""
    return ", ".join(repr(key) for key in record) or "none"
