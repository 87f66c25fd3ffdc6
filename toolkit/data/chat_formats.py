"""Formats of conversation files, and how a record of each becomes a conversation.

================== ============================================= =========================
format             keys                                          known from
================== ============================================= =========================
messages           messages: [{role, content}, ...]              OpenAI, TRL
sharegpt           conversations: [{from, value}, ...]           ShareGPT, axolotl
alpaca             instruction, output [, input, history]        Stanford Alpaca
self-instruct      instruction, instances: [{input, output}]     Self-Instruct
prompt-completion  prompt, completion (strings or turns)         TRL
text               text                                          pretraining files
================== ============================================= =========================

All but ``text`` may have a ``system`` key: a system turn in front of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from toolkit.data.chat_turns import (
    Messages,
    UnusableError,
    check_turns,
    keys_of,
    message,
    read_text,
    read_turns,
)
from toolkit.errors import DataError

ConversationFormat = Literal[
    "auto", "messages", "sharegpt", "alpaca", "self-instruct", "prompt-completion", "text"
]
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation to learn from, or a plain text."""

    messages: Messages
    where: str
    """The row it comes from, such as ``train.jsonl:17``."""
    text: str | None = None
    """The text of a ``text`` row, which has no turns."""


@dataclass(frozen=True)
class Layout:
    """A format: the keys that tell it, and its reader."""

    keys: tuple[str, ...]
    read: Callable[[Row, str], Iterator[Messages | str]]
    optional: tuple[str, ...] = ("system",)


def rename(row: Row, columns: Mapping[str, str] | None, where: str) -> Row:
    """The row with the fields that ``columns`` names (``{"prompt": "question"}``) under our names.

    Raises:
        DataError: the row lacks a key that ``columns`` names.
    """
    if not columns:
        return row
    for field, key in columns.items():
        if key not in row:
            raise DataError(
                f"no key {key!r}, which columns names for {field}; the keys are {keys_of(row)}",
                where=where,
            )
    taken = set(columns.values())
    return {k: v for k, v in row.items() if k not in taken} | {
        field: row[key] for field, key in columns.items()
    }


def recognise(row: Row, where: str) -> str:
    """The format of a row, by its keys.

    Raises:
        DataError: no format has these keys.
    """
    for name, layout in LAYOUTS.items():
        if all(key in row for key in layout.keys):
            return name
    known = " | ".join(" + ".join(layout.keys) for layout in LAYOUTS.values())
    raise DataError(
        f"not recognised as a conversation; the keys are {keys_of(row)}",
        where=where,
        hint=f"expected one of: {known}; name other keys by columns, "
        "such as columns: {prompt: question, completion: answer}",
    )


def convert(row: Row, name: str, where: str) -> Iterator[Conversation]:
    """The conversations of a row in the format called ``name``; most formats have one.

    Raises:
        DataError: a key is missing, of a wrong type, or the turns are out of order.
        UnusableError: nothing can be learnt from it.
    """
    layout = LAYOUTS[name]
    missing = [key for key in layout.keys if key not in row]
    if missing:
        raise DataError(
            f"the format {name} needs {' and '.join(layout.keys)}; the keys are {keys_of(row)}",
            where=where,
        )
    for found in layout.read(row, where):
        if isinstance(found, str):
            yield Conversation((), where, text=found)
        else:
            turns = (*_system(row, found, where), *found)
            check_turns(turns, where)
            yield Conversation(turns, where)


def _system(row: Row, turns: Messages, where: str) -> Messages:
    text = row.get("system")
    if not text:
        return ()
    if turns[0]["role"] == "system":
        raise DataError("a system turn besides the key 'system'", where=where)
    return (message("system", read_text(text, "system", where)),)


def _messages(row: Row, where: str) -> Iterator[Messages]:
    yield read_turns(row["messages"], "messages", where)


def _sharegpt(row: Row, where: str) -> Iterator[Messages]:
    yield read_turns(row["conversations"], "conversations", where)


def _alpaca(row: Row, where: str) -> Iterator[Messages]:
    asked = _instruction(row, row.get("input"), where)
    answer = read_text(row["output"], "output", where)
    yield (*_history(row, where), message("user", asked), message("assistant", answer))


def _self_instruct(row: Row, where: str) -> Iterator[Messages]:
    instances = row["instances"]
    if not isinstance(instances, list) or not all(isinstance(i, dict) for i in instances):
        raise DataError("'instances' is not a list of objects", where=where)
    for number, instance in enumerate(instances):
        if "output" not in instance:
            raise DataError(
                f"instances[{number}] has no 'output'; its keys are {keys_of(instance)}",
                where=where,
            )
        asked = _instruction(row, instance.get("input"), where)
        answer = read_text(instance["output"], f"instances[{number}].output", where)
        yield message("user", asked), message("assistant", answer)


def _instruction(row: Row, given: Any, where: str) -> str:
    asked = read_text(row["instruction"], "instruction", where)
    return f"{asked}\n\n{read_text(given, 'input', where)}" if given else asked


def _history(row: Row, where: str) -> Messages:
    """Earlier turns, as LLaMA-Factory's alpaca files have them: [[question, answer], ...]."""
    turns: Messages = ()
    for number, pair in enumerate(row.get("history") or []):
        if not isinstance(pair, list) or len(pair) != 2:
            raise DataError(f"history[{number}] is no pair of question and answer", where=where)
        asked, answer = (read_text(text, f"history[{number}]", where) for text in pair)
        turns = (*turns, message("user", asked), message("assistant", answer))
    return turns


def _prompt_completion(row: Row, where: str) -> Iterator[Messages]:
    yield (
        *as_turns(row["prompt"], "prompt", "user", where),
        *as_turns(row["completion"], "completion", "assistant", where),
    )


def as_turns(value: Any, key: str, role: Literal["user", "assistant"], where: str) -> Messages:
    """The turns of a value that may be a string (one turn of ``role``) or a list of turns."""
    if isinstance(value, str):
        return (message(role, value),)
    return read_turns(value, key, where)


def _text(row: Row, where: str) -> Iterator[str]:
    text = read_text(row["text"], "text", where)
    if not text.strip():
        raise UnusableError("an empty text")
    yield text


LAYOUTS: dict[str, Layout] = {
    "messages": Layout(("messages",), _messages),
    "sharegpt": Layout(("conversations",), _sharegpt),
    "alpaca": Layout(("instruction", "output"), _alpaca, ("system", "input", "history")),
    "self-instruct": Layout(("instruction", "instances"), _self_instruct),
    "prompt-completion": Layout(("prompt", "completion"), _prompt_completion),
    "text": Layout(("text",), _text, ()),
}
"""In the order in which they are tried."""
assert tuple(LAYOUTS) == get_args(ConversationFormat)[1:]

CONVERSATION_FIELDS = tuple(
    dict.fromkeys(key for layout in LAYOUTS.values() for key in (*layout.keys, *layout.optional))
)
"""What ``columns`` may name for conversations."""
