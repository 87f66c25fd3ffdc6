"""Conversations and pairs as tokens, with those that count marked.

The tokens and the marks are those of training (``ChatTokenizer``), so that what is measured is
what was learnt. Models made elsewhere often have a chat template without ``{% generation %}``
marks; for them a turn is what it adds to the text before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from transformers import PreTrainedTokenizerBase

from toolkit.data.chat_tokens import IGNORED, ChatTokenizer
from toolkit.data.chat_turns import message
from toolkit.data.conversations import Conversation, Message, Preference
from toolkit.errors import DataError, ToolkitError
from toolkit.evaluate.scoring import Tokens

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Dialogues:
    """Turns rows into tokens by one chat template.

    Args:
        tokenizer: the model's.
        template: Jinja; None joins a prompt and its answer as they are, then eos.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str | None) -> None:
        self._tokenizer = tokenizer
        self._unmarked = template if template and not GENERATION.search(template) else None
        self._trained = ChatTokenizer(tokenizer, None if self._unmarked else template)

    def conversation(self, row: Conversation) -> Tokens:
        """A conversation of which the assistant's turns count, with what ends them.

        Raises:
            DataError: a plain text, or turns that the template refuses.
            UnusableError: nothing counts.
        """
        if row.text is not None:
            raise DataError(
                "a plain text, without turns of an assistant",
                where=row.where,
                hint="measure texts by perplexity; answer_loss takes conversations",
            )
        if self._unmarked:
            return self._by_spans(row.messages, self._unmarked)
        found = self._trained.conversation(row)
        return Tokens(found.input_ids, [label != IGNORED for label in found.labels])

    def pair(self, row: Preference) -> tuple[Tokens, Tokens]:
        """The prompt with the chosen, and with the rejected answer, which alone counts.

        Raises:
            DataError: turns that the template refuses.
            UnusableError: the template makes the answers equal.
        """
        if self._unmarked:
            chosen, rejected = (
                last_turn(self._by_spans((*row.prompt, message("assistant", a)), self._unmarked))
                for a in (row.chosen, row.rejected)
            )
            return chosen, rejected
        found = self._trained.preference(row)
        prompt = found.prompt_ids
        chosen, rejected = (
            Tokens([*prompt, *answer], [False] * len(prompt) + [True] * len(answer))
            for answer in (found.chosen_ids, found.rejected_ids)
        )
        return chosen, rejected

    def _by_spans(self, messages: Sequence[Message], template: str) -> Tokens:
        text = self._render(messages, template)
        spans = list(self._spans(messages, template, text))
        found = self._tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        scored = [
            any(start < last and end > first for first, last in spans)
            for start, end in found["offset_mapping"]
        ]
        return Tokens(found["input_ids"], scored)

    def _spans(
        self, messages: Sequence[Message], template: str, text: str
    ) -> Iterator[tuple[int, int]]:
        """Characters of ``text`` that the assistant's turns take."""
        for index, turn in enumerate(messages):
            if turn["role"] != "assistant":
                continue
            before = self._render(messages[:index], template, ask=True)
            after = self._render(messages[: index + 1], template)
            if not after.startswith(before) or not text.startswith(after):
                raise ToolkitError(
                    "the chat template has no {% generation %} marks, and renders a turn "
                    "differently once others follow, so the assistant's tokens can't be told",
                    where=str(self._tokenizer.name_or_path),
                    hint="put {% generation %} and {% endgeneration %} around the assistant's turn",
                )
            yield len(before), len(after)

    def _render(self, messages: Sequence[Message], template: str, *, ask: bool = False) -> str:
        rendered = self._tokenizer.apply_chat_template(
            list(messages), chat_template=template, tokenize=False, add_generation_prompt=ask
        )
        return str(rendered)


def last_turn(tokens: Tokens) -> Tokens:
    """The same conversation with only the assistant's last turn counting."""
    at = len(tokens.scored) - 1
    while at >= 0 and not tokens.scored[at]:
        at -= 1
    while at >= 0 and tokens.scored[at]:
        at -= 1
    return Tokens(tokens.ids, [mark and place > at for place, mark in enumerate(tokens.scored)])
