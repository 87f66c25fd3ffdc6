"""The notation of ``pipeline_model_parallel_layout``, as megatron-core reads it; free of torch.

``Et*3|(tt|)*29,L``: a letter for each layer (``E`` the embedding, ``t`` a decoder layer, ``m`` one
of multi-token prediction, ``L`` the loss), ``|`` between stages, ``x*n`` and ``(...)*n`` for what
is repeated, and commas for the eye. Stage after stage goes round the pipeline ranks. Or a list with
a list of layers' names for each stage. Follows ``PipelineParallelLayerLayout`` of megatron-core
(``transformer/pipeline_parallel_layer_layout.py``), which unrolls by regular expressions; what
those make of nested or repeated repetitions is nobody's wish, and refused here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

LayoutSetting = str | list[list[str]]

EMBEDDING, DECODER, MTP, LOSS = "E", "t", "m", "L"
NAMES = {"embedding": EMBEDDING, "decoder": DECODER, "mtp": MTP, "loss": LOSS}
"""megatron-core's ``LayerType``, without the encoder, which its layouts don't take either."""
LETTERS = frozenset(NAMES.values())
LONGEST = 100_000
"""Letters and bars of a notation, unrolled: more than any model has."""


class LayoutMistake(ValueError):
    """A layout that can't be read; the message says what and where."""


def stages_of(layout: LayoutSetting) -> tuple[str, ...]:
    """The layers of each stage, as letters: ``Ett|tt|L`` gives ``("Ett", "tt", "L")``.

    Raises:
        LayoutMistake: the layout can't be read.
    """
    return _parsed(layout) if isinstance(layout, str) else _named(layout)


def text_of(stages: Sequence[str]) -> str:
    """Stages in the shortest notation: ``Et*3|(t*2|)*3,L``."""
    found: list[str] = []
    begin = 0
    while begin < len(stages):
        end = begin
        while end < len(stages) and stages[end] == stages[begin]:
            end += 1
        times, bar = end - begin, "|" if end < len(stages) else ""
        if times > 2 and not bar:  # the last one has no bar behind it
            times, end, bar = times - 1, end - 1, "|"
        own = _short(stages[begin])
        found.append(f"({own}|)*{times}" if times > 2 else "|".join([own] * times) + bar)
        begin = end
    return "".join(found)


def _short(stage: str) -> str:
    """``Ettt`` as ``Et*3``."""
    runs: list[list[str]] = []
    for letter in stage:
        if runs and runs[-1][0] == letter:
            runs[-1].append(letter)
        else:
            runs.append([letter])
    return "".join(f"{r[0]}*{len(r)}" if len(r) > 2 else "".join(r) for r in runs)


def _named(layout: list[list[str]]) -> tuple[str, ...]:
    stages = []
    for number, names in enumerate(layout):
        letters = []
        for place, name in enumerate(names):
            letter = NAMES.get(name.strip().lower())
            if letter is None:
                raise LayoutMistake(
                    f"{name!r}, layer {place + 1} of stage {number}, is neither embedding nor"
                    " decoder nor loss"
                )
            letters.append(letter)
        stages.append("".join(letters))
    return tuple(stages)


@lru_cache(maxsize=256)
def _parsed(layout: str) -> tuple[str, ...]:
    return tuple(_Reader(layout).read().split("|"))


class _Reader:
    """Reads a notation from left to right; positions in messages count from 1."""

    def __init__(self, text: str) -> None:
        self.text = text
        # Commas go first, as in megatron-core; each other character keeps its place.
        self.characters = [(c, n) for n, c in enumerate(text, start=1) if c != ","]
        self.at = 0

    def read(self) -> str:
        """The whole, unrolled."""
        return self._sequence(inside=None)

    def _peek(self) -> str:
        return self.characters[self.at][0] if self.at < len(self.characters) else ""

    def _sequence(self, inside: int | None) -> str:
        """Units up to the end; up to a closing parenthesis where one was opened at ``inside``."""
        found: list[str] = []
        length = 0
        while (character := self._peek()) and not (character == ")" and inside is not None):
            found.append(self._unit(character, inside))
            length += len(found[-1])
            self._bound(length)
        return "".join(found)

    def _unit(self, character: str, inside: int | None) -> str:
        """A letter, a bar or a pair of parentheses, with its repetitions."""
        opened = self.at
        self.at += 1
        if character == "(":
            if inside is not None:
                raise self._mistake(opened, "parentheses inside of others; unroll one of the two")
            unit = self._sequence(inside=opened)
            if not unit or self._peek() != ")":
                what = "holds nothing" if self._peek() == ")" else "is never closed"
                raise self._mistake(opened, f"the parenthesis {what}")
            self.at += 1
            if self._peek() != "*":
                raise self._mistake(opened, "parentheses are for a repetition: (tt|)*3")
        elif character in LETTERS or character == "|":
            unit = character
        else:
            raise self._mistake(opened, self._why_not(character))
        times = self._times()
        self._bound(len(unit) * times)
        return unit * times

    def _times(self) -> int:
        if self._peek() != "*":
            return 1
        star = self.at
        self.at += 1
        digits = ""
        while self._peek() in tuple("0123456789"):
            digits += self._peek()
            self.at += 1
        if not digits:
            raise self._mistake(star, "a number must follow, as in t*3")
        if self._peek() == "*":
            raise self._mistake(self.at, "what is repeated already can't be repeated again")
        return int(digits[:9])

    def _bound(self, length: int) -> None:
        if length > LONGEST:
            raise LayoutMistake(f"{self.text!r} unrolls to more than {LONGEST:,} letters and bars")

    def _why_not(self, character: str) -> str:
        if character == ")":
            return "no parenthesis was opened"
        if character == "*":
            return "there is nothing before it to repeat"
        near = {letter.swapcase(): letter for letter in LETTERS}.get(character)
        hint = f"; did you mean {near}?" if near else ""
        return f"the letters are E (embedding), t (decoder layer) and L (loss){hint}"

    def _mistake(self, index: int, message: str) -> LayoutMistake:
        character, place = self.characters[index]
        return LayoutMistake(f"{character!r} at position {place} of {self.text!r}: {message}")
