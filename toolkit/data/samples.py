"""Embedded sample data, made from the standard library of the running interpreter: no download.

- ``python-docs``: ``{"text"}``, a docstring under its signature, or a topic of ``pydoc_data``.
- ``python-questions``: ``{"instruction", "input", "output"}`` (alpaca style): what does this
  function do, its signature, the first sentence of its docstring.
- ``python-preferences``: ``{"prompt", "chosen", "rejected"}``: the same question, the right
  sentence, and another object's. The prompt decides: the right one has a word of the name, the
  other has none, and is about a class where the question is about a function, or the reverse.

**The split.** ``sample:python-docs`` is the training part and ``sample:python-docs/held-out`` the
rest, about a tenth; so for all three. The side is decided by a hash of the docstring's first
sentence: two docstrings that are equal, or begin with the same sentence, are on one side, in all
three samples. Topics repeat one another's paragraphs, so all of them are on the training side. A
rejected answer comes from its own side.

The same interpreter always gives the same records in the same order, which is shuffled: a part of
a sample is like the whole.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from typing import Any

from toolkit.data.stdlib import Documented, documented
from toolkit.errors import DataError
from toolkit.stage import SAMPLE_PREFIX

HELD_OUT = "/held-out"
"""What stands behind a sample's name for its held-out part."""
HELD_OUT_PERCENT = 10
SHORTEST_ANSWER, LONGEST_ANSWER = 15, 160
"""Characters of an answer; a first sentence outside this range makes no question."""
LENGTH_RATIO = 1.25
"""How much longer the longer one of a preference pair may be, so that length tells nothing."""
STEM = 4
"""Letters by which two words count as related: ``decode`` and ``decoder``."""

THINGS = frozenset({"class", "module"})
"""Kinds that a docstring names (``A queue of ...``); functions and methods do (``Return ...``)."""

Row = dict[str, Any]


def read_sample(name: str) -> Iterator[Row]:
    """The records of a sample, by its name with or without ``sample:`` in front.

    Raises:
        DataError: there is no such sample; the message lists those that are.
    """
    base, held_out = _parse(name)
    return _MAKERS[base](held_out)


def check_sample(name: str) -> None:
    """Refuse a name that is no sample's.

    Raises:
        DataError: there is no such sample; the message lists those that are.
    """
    _parse(name)


def _parse(name: str) -> tuple[str, bool]:
    plain = name.removeprefix(SAMPLE_PREFIX)
    base = plain.removesuffix(HELD_OUT)
    if base not in SAMPLES:
        names = ", ".join(f"{SAMPLE_PREFIX}{sample}[{HELD_OUT}]" for sample in SAMPLES)
        raise DataError(f"no sample is called {plain!r}", hint=f"there are: {names}")
    return base, plain != base


def is_held_out(docstring: str) -> bool:
    """Which side of the split a docstring is on, by the SHA-256 of its first sentence."""
    digest = _hash(first_sentence(docstring).rstrip(".").lower())
    return int.from_bytes(digest[:8], "big") % 100 < HELD_OUT_PERCENT


def first_sentence(docstring: str) -> str:
    """The first sentence of the text before the first blank line, on one line."""
    paragraph = " ".join(re.split(r"\n\s*\n", docstring, maxsplit=1)[0].split())
    return re.split(r"(?<=[.!?])\s+(?=[A-Z])", paragraph)[0]


def answer(item: Documented) -> str | None:
    """The first sentence of a docstring, or None where it is no sentence about the object."""
    sentence = first_sentence(item.docstring)
    if not sentence[:1].isalpha() or "->" in sentence or ">>>" in sentence or sentence[-1] == ":":
        return None
    sentence = sentence if sentence[-1] in ".!?" else f"{sentence}."
    whole = SHORTEST_ANSWER <= len(sentence) <= LONGEST_ANSWER and len(sentence.split()) >= 3
    return sentence if whole else None


def _side(held_out: bool) -> list[Documented]:
    side = (item for item in documented() if is_held_out(item.docstring) == held_out)
    return sorted(side, key=lambda item: _hash(item.name + item.docstring))


def _docs(held_out: bool) -> Iterator[Row]:
    from pydoc_data.topics import topics  # half a megabyte that ``toolkit check`` needn't load

    texts = [f"{item.kind} {item.heading}\n\n{item.docstring}\n" for item in _side(held_out)]
    if not held_out:
        texts.extend(f"topic {name}\n\n{text.strip()}\n" for name, text in topics.items())
    for text in sorted(texts, key=_hash):
        yield {"text": text}


def _questions(held_out: bool) -> Iterator[Row]:
    for item, text in _answered(held_out):
        yield {"instruction": _question(item), "input": item.heading, "output": text}


def _preferences(held_out: bool) -> Iterator[Row]:
    """Pairs that the prompt decides, see ``_contrasts``."""
    pool = list(_answered(held_out))
    for index, (item, chosen) in enumerate(pool):
        if _related(item.name, chosen):
            others = (pool[(index + step) % len(pool)] for step in range(1, len(pool)))
            rejected = next((t for o, t in others if _contrasts(item, chosen, o, t)), None)
            if rejected is not None:
                prompt = f"{_question(item)}\n\n{item.heading}"
                yield {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _answered(held_out: bool) -> Iterator[tuple[Documented, str]]:
    for item in _side(held_out):
        text = answer(item)
        if text is not None:
            yield item, text


def _question(item: Documented) -> str:
    return f"What does this Python {item.kind} do?"


def _contrasts(item: Documented, chosen: str, other: Documented, text: str) -> bool:
    """Whether ``text`` is plainly wrong for ``item``: about a thing where an action is asked for.

    Or the other way round; and it has no word of the name, and about the length of ``chosen``.
    """
    if (item.kind in THINGS) == (other.kind in THINGS):
        return False
    shorter, longer = sorted((len(chosen), len(text)))
    return longer <= LENGTH_RATIO * shorter and not _related(item.name, text)


def _related(name: str, text: str) -> bool:
    """Whether a sentence has a word that the last two parts of the name have."""
    return not _stems(" ".join(name.split(".")[-2:])).isdisjoint(_stems(text))


def _stems(text: str) -> set[str]:
    """Beginnings of the words of a text, ``camelCase`` and ``snake_case`` taken apart."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", text)
    return {word.lower()[:STEM] for word in words if len(word) >= STEM}


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


_MAKERS: dict[str, Callable[[bool], Iterator[Row]]] = {
    "python-docs": _docs,
    "python-questions": _questions,
    "python-preferences": _preferences,
}
SAMPLES: tuple[str, ...] = tuple(_MAKERS)
"""The names that may follow ``sample:``, each also with ``HELD_OUT`` behind it."""
