"""Conversations and preference pairs as token ids, and which of them are trained.

The tokenizer is any fast one of transformers. The chat template says by ``{% generation %}`` marks
which text the assistant writes; every row's mask is checked against its turns.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from toolkit.data.chat_formats import Conversation
from toolkit.data.chat_preferences import Preference
from toolkit.data.chat_turns import Messages, UnusableError, message
from toolkit.errors import DataError, ToolkitError

IGNORED = -100
"""The label of a token that is not trained."""
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Tokens:
    """One row to train on, cut to the longest length."""

    input_ids: list[int]
    labels: list[int]
    """``input_ids`` where the assistant writes, its end token included, else ``IGNORED``."""
    ends: list[int | None]
    """For each of the assistant's turns, the token it ends with, or None: no end token is trained
    (cut off, or outside of the template's marks)."""
    cut: int = 0
    """Tokens cut off at the end."""

    @property
    def trained(self) -> int:
        """How many tokens are in the loss."""
        return sum(label != IGNORED for label in self.labels)


@dataclass(frozen=True, slots=True)
class PairTokens:
    """A preference pair; the answers end with the end token, unless cut."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    ends: list[int | None]
    """The tokens that end chosen and rejected, or None where none does."""
    cut: int = 0
    """Tokens cut off at the ends of the answers, together."""


class ChatTokenizer:
    """Turns rows into tokens by one template.

    Args:
        tokenizer: a fast tokenizer of transformers.
        template: the chat template (Jinja); None joins prompt and answer as they are, then EOS.
        max_length: tokens of a row at most; what is beyond is cut off, and counted in ``cut``.
    """

    def __init__(self, tokenizer: Any, template: str | None, max_length: int | None = None) -> None:
        if not tokenizer.is_fast:
            raise ToolkitError(
                "the tokenizer gives no offsets, so the assistant's tokens can't be found",
                where=str(tokenizer.name_or_path),
                hint="save it as a fast tokenizer (tokenizer.json)",
            )
        self.tokenizer, self.template, self.max_length = tokenizer, template, max_length
        self._added = set(tokenizer.get_added_vocab().values()) | set(tokenizer.all_special_ids)
        self._blank: dict[int, bool] = {}

    def conversation(self, row: Conversation) -> Tokens:
        """A conversation's tokens.

        Raises:
            DataError: the template refuses the turns, or doesn't mark each of the assistant's.
            UnusableError: no trained token is left within ``max_length``.
        """
        if row.text is not None:
            ids = self._ended(self.tokenizer(row.text)["input_ids"])
            spans: list[Span] = [(0, len(ids))]
        else:
            ids, spans = self._masked(row.messages, row.where)
        return self._tokens(ids, spans)

    def preference(self, row: Preference) -> PairTokens:
        """A pair's tokens: what both answers share in front of them, and each answer.

        Raises:
            DataError: as ``conversation``.
            UnusableError: the prompt alone fills ``max_length``, or the answers are equal so far.
        """
        pair = []
        for text in (row.chosen, row.rejected):
            ids, spans = self._masked((*row.prompt, message("assistant", text)), row.where)
            pair.append((ids[: spans[-1][1]], spans[-1][0]))
        (chosen, start), (rejected, other) = pair
        start = min(start, other, len(chosen) - 1, len(rejected) - 1)
        if chosen[:start] != rejected[:start]:
            start = _common_length(chosen, rejected)
        return self._pair(chosen[:start], chosen[start:], rejected[start:])

    def prompt_as_generated(self, messages: Messages) -> tuple[list[int], list[int]]:
        """The tokens that generation will have in front of the last turn, and those of training.

        Where they differ, the model is trained after another context than it answers in.
        """
        if self.template is None:
            generated = self._raw(messages[:-1], "")
        else:
            text, _ = self._render(messages[:-1], "", generate=True)
            generated = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        ids, _ = self._masked(messages, "")
        return generated, ids[: len(generated)]

    def marked_text(self, tokens: Tokens, start: str = "[[", stop: str = "]]") -> str:
        """The row as text, its trained parts between brackets: to show what is learnt."""
        shown = []
        pairs = zip(tokens.input_ids, tokens.labels, strict=True)
        for trained, run in groupby(pairs, key=lambda pair: pair[1] != IGNORED):
            text = self.tokenizer.decode([token for token, _ in run], skip_special_tokens=False)
            shown.append(f"{start}{text}{stop}" if trained else text)
        return "".join(shown)

    def _tokens(self, ids: list[int], spans: Sequence[Span]) -> Tokens:
        labels = [IGNORED] * len(ids)
        for start, stop in spans:
            labels[start:stop] = ids[start:stop]
        length = min(len(ids), self.max_length or len(ids))
        kept = [span for span in spans if span[0] < length]
        if all(label == IGNORED for label in labels[1:length]):
            raise UnusableError("no trained token within max_length")
        ends = [self._end(ids[a:b]) if b <= length else None for a, b in kept]
        return Tokens(ids[:length], labels[:length], ends, len(ids) - length)

    def _pair(self, prompt: list[int], chosen: list[int], rejected: list[int]) -> PairTokens:
        ends = [self._end(chosen), self._end(rejected)]
        if self.max_length is None:
            return PairTokens(prompt, chosen, rejected, ends)
        room = self.max_length - len(prompt)
        if room <= 0:
            raise UnusableError("the prompt alone fills max_length")
        if chosen[:room] == rejected[:room]:
            raise UnusableError("chosen and rejected are the same within max_length")
        ends = [e if len(ids) <= room else None for e, ids in zip(ends, (chosen, rejected),
                                                                  strict=True)]  # fmt: skip
        cut = sum(max(0, len(ids) - room) for ids in (chosen, rejected))
        return PairTokens(prompt, chosen[:room], rejected[:room], ends, cut)

    def _masked(self, messages: Messages, where: str) -> tuple[list[int], list[Span]]:
        """All tokens of some turns, and the spans that the assistant writes."""
        if self.template is None:
            return self._joined(messages, where)
        text, marks = self._render(messages, where)
        out = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        starts = [start for start, _ in out["offset_mapping"]]
        # A token that begins in front of a mark is the prompt's: it stands there in generation too.
        spans = [(bisect_left(starts, a), bisect_left(starts, b)) for a, b in marks]
        turns = sum(turn["role"] == "assistant" for turn in messages)
        if len(spans) != turns or any(start >= stop for start, stop in spans):
            raise DataError(
                f"the chat template marks {len(spans)} of the assistant's {turns} turns",
                where=where,
                hint="put each of them, with its end token, between {% generation %} and "
                "{% endgeneration %}; or set chat_template: chatml or plain",
            )
        return list(out["input_ids"]), spans

    def _render(
        self, messages: Messages, where: str, generate: bool = False
    ) -> tuple[str, list[Span]]:
        """The turns as text, and the parts of it that the template marks, in characters."""
        try:
            texts, marks = render_jinja_template(
                conversations=[list(messages)],
                chat_template=self.template,
                return_assistant_tokens_mask=True,
                add_generation_prompt=generate,
                **self.tokenizer.special_tokens_map,
            )
        except (TemplateError, ValueError, TypeError) as error:
            raise DataError(f"the chat template refuses this: {error}", where=where) from error
        return texts[0], list(marks[0])

    def _joined(self, messages: Messages, where: str) -> tuple[list[int], list[Span]]:
        prompt = self._raw(messages[:-1], where)
        text = "".join(turn["content"] for turn in messages)
        ids = self._ended(self.tokenizer(text)["input_ids"])
        start = min(_common_length(prompt, ids), len(ids) - 1)
        return ids, [(start, len(ids))]

    def _raw(self, messages: Messages, where: str) -> list[int]:
        if len(messages) != 1:
            raise DataError(
                "a conversation of more than a prompt and an answer, with chat_template: none",
                where=where,
                hint="choose a chat template: what stands between turns is its to say",
            )
        return list(self.tokenizer(messages[0]["content"])["input_ids"])

    def _ended(self, ids: list[int]) -> list[int]:
        end = self.tokenizer.eos_token_id
        if end is None:
            raise DataError("the tokenizer has no eos_token to end a text with")
        return list(ids) if ids and ids[-1] == end else [*ids, end]

    def _end(self, ids: Sequence[int]) -> int | None:
        """The last token but blanks, if it is a special one: a template may add a line break."""
        last = next((i for i in reversed(ids) if not self._is_blank(i)), None)
        return last if last in self._added else None

    def _is_blank(self, token: int) -> bool:
        if token not in self._blank:
            self._blank[token] = not self.tokenizer.decode([token]).strip()
        return self._blank[token]


def _common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two lists share at their beginnings."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((n for n, (x, y) in pairs if x != y), min(len(a), len(b)))
