"""Which chat template a model is trained with, and whether it can be."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.data.tokenizer_folder import TEMPLATES
from toolkit.errors import ToolkitError

logger = logging.getLogger(__name__)

CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Template:
    """A chat template for training."""

    text: str | None
    """Jinja; None where prompt and answer are joined as they are."""
    saved: bool
    """Whether the trained model's tokenizer takes it over; else it keeps its own, which renders
    the same."""


def choose_template(tokenizer: Any, name: str, path: Path | None = None) -> Template:
    """The template that the settings ask for.

    Args:
        tokenizer: the model's.
        name: ``model``, ``chatml``, ``plain`` or ``none``.
        path: a ``.jinja`` file, used instead.

    Raises:
        ToolkitError: there is none, its marks are missing, or the vocabulary lacks its tokens.
    """
    if path is not None:
        return Template(_marked(path.read_text(encoding="utf-8"), str(path)), saved=True)
    if name == "none":
        return Template(None, saved=False)
    if name == "chatml":
        _require_tokens(tokenizer, CHATML_TOKENS)
    if name == "model":
        return _own(tokenizer)
    ours = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    return Template(_begun(tokenizer) + ours, saved=True)


def _own(tokenizer: Any) -> Template:
    own = tokenizer.chat_template
    own = own.get("default") if isinstance(own, dict) else own
    if not own:
        raise ToolkitError(
            "the model's tokenizer has no chat template",
            where=str(tokenizer.name_or_path),
            hint="set chat_template: plain (any vocabulary), chatml (one with <|im_start|>), or "
            "none to train on prompt and answer as they are",
        )
    if GENERATION.search(own):
        return Template(own, saved=False)
    from trl.chat_template_utils import get_training_chat_template  # slow, and rarely needed

    try:
        known = get_training_chat_template(tokenizer)
    except ValueError:
        known = None
    logger.info("the chat template has no {%% generation %%} marks; TRL's marked twin is used")
    return Template(_marked(known or own, str(tokenizer.name_or_path)), saved=False)


def _marked(text: str, where: str) -> str:
    if not GENERATION.search(text):
        raise ToolkitError(
            "the chat template doesn't mark what the assistant writes, so the loss can't be "
            "restricted to it",
            where=where,
            hint="put {% generation %} and {% endgeneration %} around the assistant's text and its "
            "end token, in a file named by chat_template_path; or set chat_template: chatml or "
            "plain",
        )
    return text


def _require_tokens(tokenizer: Any, tokens: tuple[str, ...]) -> None:
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in tokens if token not in vocabulary]
    if missing:
        raise ToolkitError(
            f"chat_template chatml needs {' and '.join(missing)}, which the vocabulary lacks",
            where=str(tokenizer.name_or_path),
            hint="set chat_template: plain, which needs no tokens of its own",
        )


def _begun(tokenizer: Any) -> str:
    """The BOS token in front, for tokenizers that put one in front of every text."""
    first = (tokenizer("a")["input_ids"] or [None])[0]
    has_bos = first is not None and first == tokenizer.bos_token_id
    return "{{- bos_token -}}" if has_bos else ""
