"""Formats of preference files: a prompt, a better and a worse answer.

============ ========================================================== ==================
format       keys                                                       known from
============ ========================================================== ==================
pairs        prompt, chosen, rejected; the answers are strings or one   TRL, sample data
             turn, the prompt a string, turns or a transcript
messages     chosen, rejected: whole conversations of turns, equal up   UltraFeedback
             to the last turn; a prompt beside them must be the same
transcripts  chosen, rejected: ``\\n\\nHuman: ...\\n\\nAssistant: ...``     Anthropic HH
============ ========================================================== ==================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from toolkit.data.chat_formats import Row, as_turns
from toolkit.data.chat_turns import (
    Messages,
    UnusableError,
    check_turns,
    is_transcript,
    keys_of,
    message,
    read_text,
    read_transcript,
    read_turns,
)
from toolkit.errors import DataError

PreferenceFormat = Literal["auto", "pairs", "messages", "transcripts"]
PREFERENCE_FIELDS = ("prompt", "chosen", "rejected", "system")
"""What ``columns`` may name for preferences."""


@dataclass(frozen=True, slots=True)
class Preference:
    """Two answers to one prompt, the first better than the second."""

    prompt: Messages
    """Ends with a turn of the user."""
    chosen: str
    rejected: str
    where: str
    """The row it comes from, such as ``pairs.jsonl:17``."""


def recognise_preference(row: Row, where: str) -> str:
    """The format of a row, by its keys and the types of its values.

    Raises:
        DataError: no format has these keys.
    """
    if "chosen" not in row or "rejected" not in row:
        raise DataError(
            f"not recognised as a preference; the keys are {keys_of(row)}",
            where=where,
            hint="expected chosen and rejected, and a prompt unless they begin with it; name other "
            "keys by columns, such as columns: {chosen: better, rejected: worse}",
        )
    answers = (row["chosen"], row["rejected"])
    if all(isinstance(answer, list) and len(answer) > 1 for answer in answers):
        return "messages"
    if "prompt" in row:
        return "pairs"
    if all(isinstance(answer, str) and is_transcript(answer) for answer in answers):
        return "transcripts"
    raise DataError(
        "chosen and rejected without a prompt, and neither whole conversations nor transcripts",
        where=where,
        hint=f"add a key 'prompt', or name it by columns; the keys are {keys_of(row)}",
    )


def convert_preference(row: Row, name: str, where: str) -> Preference:
    """The pair of a row in the format called ``name``.

    Raises:
        DataError: a key is missing or of a wrong type, or turns are out of order.
        UnusableError: the answers are equal or empty, or the conversations differ before the
            last turn.
    """
    missing = [key for key in ("chosen", "rejected") if key not in row]
    if name == "pairs" and "prompt" not in row:
        missing.insert(0, "prompt")
    if missing:
        raise DataError(
            f"the format {name} needs {' and '.join(missing)}; the keys are {keys_of(row)}",
            where=where,
        )
    prompt, chosen, rejected = READERS[name](row, where)
    if row.get("system"):
        prompt = (message("system", read_text(row["system"], "system", where)), *prompt)
    return _checked(Preference(prompt, chosen, rejected, where))


def _checked(pair: Preference) -> Preference:
    if not pair.chosen.strip() or not pair.rejected.strip():
        raise UnusableError("an empty answer")
    if pair.chosen.strip() == pair.rejected.strip():
        raise UnusableError("chosen and rejected are the same")
    check_turns((*pair.prompt, message("assistant", pair.chosen)), pair.where)
    return pair


def _pairs(row: Row, where: str) -> tuple[Messages, str, str]:
    prompt = row["prompt"]
    if all(str(row[key]).startswith("\n\nHuman:") for key in ("chosen", "rejected")):
        raise DataError(
            "chosen and rejected are whole transcripts, beside a prompt",
            where=where,
            hint="set format: transcripts, which takes the prompt from them",
        )
    if isinstance(prompt, str) and is_transcript(prompt):
        turns = read_transcript(prompt)
        # "...\n\nAssistant:" asks for the answer; what is said there already belongs to it.
        turns = turns[:-1] if turns[-1] == message("assistant", "") else turns
    else:
        turns = as_turns(prompt, "prompt", "user", where)
    return turns, _answer(row, "chosen", where), _answer(row, "rejected", where)


def _answer(row: Row, key: str, where: str) -> str:
    turns = as_turns(row[key], key, "assistant", where)
    if len(turns) != 1 or turns[0]["role"] != "assistant":
        roles = ", ".join(turn["role"] for turn in turns)
        raise DataError(
            f"{key!r} beside a prompt has the turns {roles}; one of the assistant was expected",
            where=where,
        )
    return turns[0]["content"]


def _whole_messages(row: Row, where: str) -> tuple[Messages, str, str]:
    pair = [read_turns(row[key], key, where) for key in ("chosen", "rejected")]
    prompt, chosen, rejected = _common_prompt(*pair)
    asked = row.get("prompt")
    if isinstance(asked, str) and asked.strip() != _last_text(prompt).strip():
        raise DataError("'prompt' is not the last question that chosen and rejected answer",
                        where=where)  # fmt: skip
    return prompt, chosen, rejected


def _transcripts(row: Row, where: str) -> tuple[Messages, str, str]:
    texts = [read_text(row[key], key, where) for key in ("chosen", "rejected")]
    for key, text in zip(("chosen", "rejected"), texts, strict=True):
        if not is_transcript(text):
            raise DataError(f"{key!r} doesn't begin with 'Human:'", where=where)
    return _common_prompt(*(read_transcript(text) for text in texts))


def _common_prompt(chosen: Messages, rejected: Messages) -> tuple[Messages, str, str]:
    """What two conversations share, and the one turn in which each goes on."""
    if chosen == rejected:
        raise UnusableError("chosen and rejected are the same")
    prompt, better, worse = chosen[:-1], chosen[-1], rejected[-1]
    if prompt != rejected[:-1]:
        raise UnusableError("chosen and rejected differ before their last turn")
    if better["role"] != "assistant" or worse["role"] != "assistant":
        raise UnusableError("a conversation that doesn't end with the assistant")
    return prompt, better["content"], worse["content"]


def _last_text(turns: Messages) -> str:
    return turns[-1]["content"] if turns else ""


READERS: dict[str, Callable[[Row, str], tuple[Messages, str, str]]] = {
    "pairs": _pairs,
    "messages": _whole_messages,
    "transcripts": _transcripts,
}
assert tuple(READERS) == get_args(PreferenceFormat)[1:]
