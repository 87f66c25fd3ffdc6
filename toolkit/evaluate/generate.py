"""Generation: what a model writes after a prompt. Deterministic unless a temperature is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TextStreamer,
)

from toolkit.errors import ToolkitError
from toolkit.evaluate.perplexity import start_token
from toolkit.hf import load_model, load_tokenizer

OnText = Callable[[str], None]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    """0 takes the likeliest token each time."""
    top_p: float = 1.0
    seed: int = 1234


@dataclass(frozen=True)
class Completion:
    """What a model wrote."""

    text: str
    tokens: int
    """The token that ended it included."""
    finish: Literal["stop", "length"]
    """``stop``: the model ended it; ``length``: cut at max_new_tokens, or the context was full."""


def generate(
    model_dir: Path,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 1234,
    chat: bool = False,
    on_text: OnText | None = None,
) -> Iterator[str]:
    """Load a model (on a GPU where there is one) and go on from each prompt, in turn.

    Args:
        model_dir: a ``model`` or ``adapter`` artifact, or such a folder made elsewhere.
        prompts: the same seed is used for each, so the order does not matter.
        max_new_tokens: length at most; the model's own end comes first.
        temperature: 0 takes the likeliest token each time.
        top_p: sample from the likeliest tokens of this total probability.
        seed: of the sampling.
        chat: whether a prompt is a user's turn in the model's chat template, or the beginning of
            a text.
        on_text: told each piece of text as soon as it is written.

    Yields:
        What was written, one text for each prompt.

    Raises:
        ToolkitError: not a model, no chat template where one is asked for, or a prompt that fills
            the context.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = load_tokenizer(model_dir)
    template = chat_template(tokenizer) if chat else None
    if chat and template is None:
        raise ToolkitError(
            "the model has no chat template",
            where=str(model_dir),
            hint="use --text to go on from plain text, or put chat_template.jinja into the folder",
        )
    model = load_model(model_dir, device=device, dtype="auto" if device == "cuda" else "float32")
    sampling = Sampling(max_new_tokens, temperature, top_p, seed)
    for prompt in prompts:
        ids = encode_prompt(tokenizer, prompt, template)
        yield complete(model, tokenizer, ids, sampling, on_text).text


def chat_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The tokenizer's chat template; of several by name, the default one."""
    found: Any = tokenizer.chat_template
    if isinstance(found, dict):
        found = found.get("default")
    return None if found is None else str(found)


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: str, template: str | None
) -> list[int]:
    """A user's turn that asks for an answer; without a template, the beginning of a text."""
    if template is None:
        ids = tokenizer(prompt, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [start_token(tokenizer), *ids]
    found = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        chat_template=template,
        add_generation_prompt=True,
        return_dict=True,
    )
    return list(found["input_ids"])


def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[int],
    sampling: Sampling,
    on_text: OnText | None = None,
) -> Completion:
    """Go on from a prompt until the model ends, or there is no room.

    The model's own generation settings (penalties, say) count for nothing but its ends, so that
    models side by side are asked alike.

    Raises:
        ToolkitError: the prompt fills the context.
    """
    ends = end_tokens(model, tokenizer)
    settings = _generation_config(sampling, _room(model, len(prompt), sampling), ends)
    inputs = torch.tensor([prompt], device=model.device)
    streamer = _Streamer(tokenizer, on_text, ends) if on_text else None
    own, model.generation_config = model.generation_config, GenerationConfig()
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices), torch.inference_mode():
            torch.manual_seed(sampling.seed)
            output = model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                generation_config=settings,
                streamer=streamer,
            )
    finally:
        model.generation_config = own
    new = output[0, len(prompt) :].tolist()
    ended = bool(new) and new[-1] in ends
    text = tokenizer.decode(new[:-1] if ended else new, skip_special_tokens=True)
    return Completion(text, len(new), "stop" if ended else "length")


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end a text: the tokenizer's eos, and what the model's generation config names."""
    named = model.generation_config.eos_token_id if model.generation_config else None
    ends = set(named if isinstance(named, list) else [named]) | {tokenizer.eos_token_id}
    return sorted(end for end in ends if end is not None)


def context_length(config: Any) -> int | None:
    """How many positions a model has, by its Hugging Face config; None where there is no limit."""
    found = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(found) if found else None


def _room(model: PreTrainedModel, prompt: int, sampling: Sampling) -> int:
    limit = context_length(model.config)
    if limit is None:
        return sampling.max_new_tokens
    if prompt >= limit:
        raise ToolkitError(
            f"the prompt has {prompt:,} tokens, and the model's context ends at {limit:,}",
            hint="shorten the prompt",
        )
    return min(sampling.max_new_tokens, limit - prompt)


def _generation_config(sampling: Sampling, room: int, ends: list[int]) -> GenerationConfig:
    chosen: dict[str, Any] = {"do_sample": False}
    if sampling.temperature > 0:
        chosen = {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": 0,
        }
    return GenerationConfig(
        max_new_tokens=room,
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else 0,
        **chosen,
    )


class _Streamer(TextStreamer):  # type: ignore[misc]
    """Hands text on as soon as no later token can change it."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, on_text: OnText, ends: Sequence[int]
    ) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._on_text, self._ends = on_text, ends

    def put(self, value: torch.Tensor) -> None:
        """Called by generate() with the prompt, then with each token; what ends a text is none."""
        if value.numel() > 1 or value.item() not in self._ends:
            super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called by generate()."""
        if text:
            self._on_text(text)
