"""Conversations as tokens, with the assistant's marked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from transformers import PreTrainedTokenizerBase

from toolkit.data.conversations import Message
from toolkit.errors import ToolkitError
from toolkit.evaluate.scoring import Tokens

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


def encode(
    tokenizer: PreTrainedTokenizerBase, template: str | None, messages: Sequence[Message]
) -> Tokens:
    """A conversation in the chat template; the assistant's turns count, with what ends them.

    Which they are, the template says by its ``{% generation %}`` marks. Where it has none, it is
    what each turn of the assistant adds to the text before it.

    Raises:
        ToolkitError: no chat template, or one in which they can't be told.
    """
    if template is None:
        raise ToolkitError(
            "no chat template, neither of this model nor of another one in the table",
            where=str(tokenizer.name_or_path),
            hint="put chat_template.jinja into the model's folder",
        )
    if not GENERATION.search(template):
        return _by_spans(tokenizer, template, messages)
    found = tokenizer.apply_chat_template(
        list(messages),
        chat_template=template,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    return Tokens(found["input_ids"], [bool(mark) for mark in found["assistant_masks"]])


def last_turn(tokens: Tokens) -> Tokens:
    """The same conversation with only the assistant's last turn counting."""
    scored = list(tokens.scored)
    at = len(scored) - 1
    while at >= 0 and not scored[at]:
        at -= 1
    while at >= 0 and scored[at]:
        at -= 1
    return Tokens(tokens.ids, [mark and place > at for place, mark in enumerate(scored)])


def _by_spans(
    tokenizer: PreTrainedTokenizerBase, template: str, messages: Sequence[Message]
) -> Tokens:
    text = _render(tokenizer, template, messages)
    spans = list(_spans(tokenizer, template, messages, text))
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    scored = [
        any(start < last and end > first for first, last in spans)
        for start, end in found["offset_mapping"]
    ]
    return Tokens(found["input_ids"], scored)


def _spans(
    tokenizer: PreTrainedTokenizerBase, template: str, messages: Sequence[Message], text: str
) -> Iterator[tuple[int, int]]:
    """Characters of ``text`` that the assistant's turns take."""
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _render(tokenizer, template, messages[:index], ask=True)
        after = _render(tokenizer, template, messages[: index + 1])
        if not after.startswith(before) or not text.startswith(after):
            raise ToolkitError(
                "the chat template has no {% generation %} marks, and renders a turn differently "
                "once others follow, so the assistant's tokens can't be told",
                where=str(tokenizer.name_or_path),
                hint="put {% generation %} and {% endgeneration %} around the assistant's turn",
            )
        yield len(before), len(after)


def _render(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    messages: Sequence[Message],
    *,
    ask: bool = False,
) -> str:
    rendered = tokenizer.apply_chat_template(
        list(messages), chat_template=template, tokenize=False, add_generation_prompt=ask
    )
    return str(rendered)
