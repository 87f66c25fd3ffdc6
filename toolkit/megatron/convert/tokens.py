"""The tokenizer that goes along with a model, and the token ids that its configuration names."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from jinja2 import TemplateError
from transformers import GenerationConfig, PreTrainedTokenizerBase

from toolkit.data.config import EOD_TOKEN
from toolkit.data.tokenizer_folder import CARRIED
from toolkit.errors import ToolkitError
from toolkit.megatron.config import TrainedModel

END_OF_DOCUMENT = (EOD_TOKEN, "<|end_of_text|>", "</s>")
"""What tokenizers call the token between documents, where it isn't their ``eos_token``."""


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Token ids for config.json and generation_config.json."""

    bos: int | None
    eos: int | None
    pad: int | None
    stop: tuple[int, ...]
    """Where generation ends: the end of a text, of a document, and of a turn in a chat."""

    def config(self) -> dict[str, int | None]:
        """For a model's configuration."""
        return {"bos_token_id": self.bos, "eos_token_id": self.eos, "pad_token_id": self.pad}

    def generation_config(self) -> GenerationConfig:
        """Everything that ends a generation, as transformers and vLLM read it."""
        return GenerationConfig(
            bos_token_id=self.bos, eos_token_id=list(self.stop) or None, pad_token_id=self.pad
        )


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer's files, chat template included, into a model's folder."""
    for name in CARRIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> SpecialTokens:
    """The ids that a tokenizer has, and those at which a model trained with it should stop."""
    vocabulary = tokenizer.get_vocab()
    stops = [tokenizer.eos_token_id, *(vocabulary.get(name) for name in END_OF_DOCUMENT)]
    stops.append(_end_of_turn(tokenizer))
    return SpecialTokens(
        bos=tokenizer.bos_token_id,
        eos=tokenizer.eos_token_id,
        pad=tokenizer.pad_token_id,
        stop=tuple(dict.fromkeys(token for token in stops if token is not None)),
    )


def require_vocabulary(tokenizer: PreTrainedTokenizerBase, model: TrainedModel, where: str) -> None:
    """Refuse a tokenizer with ids that the model has no embedding for.

    Raises:
        ToolkitError: with both sizes.
    """
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= model.vocab_size:
        raise ToolkitError(
            f"the tokenizer's ids go up to {largest}, the model has {model.vocab_size} embeddings",
            where=where,
            hint="the model was trained with another tokenizer",
        )


def _end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token that the chat template writes right after an assistant's answer."""
    if not tokenizer.chat_template:
        return None
    answer = "ANSWER"
    turns = [{"role": "user", "content": "QUESTION"}, {"role": "assistant", "content": answer}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except TemplateError as error:
        raise ToolkitError(
            f"the chat template can't write a question and its answer: {error}",
            where=tokenizer.name_or_path,
        ) from error
    rest = tokenizer.encode(str(text).rpartition(answer)[2].lstrip(), add_special_tokens=False)
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return rest[0] if rest and rest[0] in special else None
