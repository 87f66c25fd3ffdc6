"""What fine-tuning stages share: the model they start from, and the artifact they end with."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from toolkit.artifacts import Artifact, write_json
from toolkit.context import StageContext
from toolkit.data.chat_template import Template, choose_template
from toolkit.data.chat_tokens import ChatTokenizer
from toolkit.data.inputs import locate_source
from toolkit.errors import ToolkitError
from toolkit.hf import base_folder, load_model, load_tokenizer
from toolkit.posttrain.loop import Metrics, full_disk_is_told
from toolkit.posttrain.rows import Rows, held_out_count, split_off
from toolkit.posttrain.settings import DEFAULT_MAX_LENGTH, TunedConfig
from toolkit.posttrain.trainer import uses_bf16

logger = logging.getLogger(__name__)

PAD_TOKENS = ("<|pad|>", "<pad>", "[PAD]", "<|finetune_right_pad_id|>", "<unk>")
"""What padding is called, in order of preference, in vocabularies that name no pad_token."""


@dataclass(frozen=True)
class Start:
    """The model to start from, its tokenizer, and how rows become tokens."""

    folder: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    template: Template
    max_length: int
    dtype: torch.dtype
    """The precision of the files, in which the result is saved too."""

    def chat(self) -> ChatTokenizer:
        """The tokenizer of rows."""
        return ChatTokenizer(self.tokenizer, self.template.text, self.max_length)


def load_start(config: TunedConfig, context: StageContext) -> Start:
    """Load what ``config.model`` names; an adapter is merged onto its base.

    Raises:
        ToolkitError: the model, its tokenizer and the settings don't go together.
    """
    folder = context.path(config.model)
    tokenizer = load_tokenizer(folder)
    path = config.chat_template_path
    template = choose_template(
        tokenizer, config.chat_template, context.path(path) if path else None
    )
    set_pad_token(tokenizer)
    model = load_reference(config, context)
    _require_vocabulary(tokenizer, model, folder)
    return Start(
        folder=folder,
        model=model,
        tokenizer=tokenizer,
        template=template,
        max_length=_max_length(config, model, folder),
        dtype=dense_dtype(folder),
    )


def load_reference(config: TunedConfig, context: StageContext) -> PreTrainedModel:
    """The model at the start, on this rank's device: fp32 where it is trained, as mixed precision
    needs it, and bf16 where it is frozen under an adapter on a device that computes in bf16."""
    frozen = config.peft is not None and uses_bf16(config, context)
    device = "cpu" if context.device == "cpu" else f"{context.device}:{context.local_rank}"
    return load_model(context.path(config.model), device, "bfloat16" if frozen else "float32")


def resolved(sources: Sequence[str], context: StageContext) -> list[str | Path]:
    """The sources as ``read_records`` takes them: paths, and names (``sample:``) as they are."""
    return [locate_source(source, context) for source in sources]


def set_pad_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a tokenizer without a pad token one of its own vocabulary, the EOS token at last.

    Any token will do: labels are made before padding, so a pad that equals EOS does not keep EOS
    out of the loss. No token is added, so the model keeps its shape.
    """
    if tokenizer.pad_token_id is None:
        vocabulary = tokenizer.get_vocab()
        named = next((token for token in PAD_TOKENS if token in vocabulary), None)
        tokenizer.pad_token = named or tokenizer.eos_token
        logger.info("the tokenizer has no pad token; %s fills batches", tokenizer.pad_token)


def dense_dtype(folder: Path) -> torch.dtype:
    """The precision of a model's files; of an adapter, that of the dense model under it."""
    while (folder / "adapter_config.json").is_file():
        folder = base_folder(folder)
    dtype = getattr(AutoConfig.from_pretrained(folder, local_files_only=True), "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def split(train: Rows, held_out: Rows | None, config: TunedConfig, seed: int) -> tuple[Any, Any]:
    """The data sets to train and to evaluate on; the second is None where nothing is held out."""
    if held_out is not None:
        dataset = held_out.dataset
        if len(dataset) > config.max_held_out:
            _, dataset = split_off(dataset, config.max_held_out, seed)
        return train.dataset, dataset
    count = held_out_count(len(train.dataset), config.eval_fraction, config.max_held_out)
    if not count:
        logger.warning("no row is held out: nothing will show whether the model got better")
        return train.dataset, None
    logger.info("%d of %d rows are held out", count, len(train.dataset))
    return split_off(train.dataset, count, seed)


def warn_of_other_prompts(prompts: tuple[list[int], list[int]], chat: ChatTokenizer) -> None:
    """Warn when generation will put another prompt in front of an answer than training does."""
    generated, trained = prompts
    if trained != generated:
        logger.warning(
            "the chat template's generation prompt differs from what stands before an answer in "
            "training:\n  generation ends with %r\n  training ends with   %r",
            chat.tokenizer.decode(generated[-12:]),
            chat.tokenizer.decode(trained[-12:]),
        )


def once(path: Path, measure: Callable[[], Metrics]) -> Metrics:
    """A measurement that is kept in a file, so that a later attempt doesn't repeat it."""
    if path.exists():
        return dict(json.loads(path.read_text(encoding="utf-8")))
    found = measure()
    write_json(path, found)
    return found


def publish(
    trainer: Any,
    start: Start,
    config: TunedConfig,
    context: StageContext,
    ends: Iterable[int],
    info: dict[str, Any],
) -> Artifact | None:
    """Save what was trained, with its tokenizer and where generation stops. Rank 0 alone does.

    Args:
        ends: the tokens that answers end with in training; generation stops at them too.
    """
    if context.rank != 0:
        return None
    built = context.building()
    model = trainer.accelerator.unwrap_model(trainer.model)
    generation = start.model.generation_config
    generation.eos_token_id = _stops(generation.eos_token_id, ends)
    with full_disk_is_told(built):
        if config.peft is None:
            model.to(start.dtype).save_pretrained(built)
        else:
            _save_adapter(model, start, built)
            generation.save_pretrained(built)
    saved = load_tokenizer(start.folder)
    if start.template.saved:
        saved.chat_template = start.template.text
    saved.save_pretrained(built)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    facts = {
        "base": config.model,
        "steps": trainer.state.global_step,
        "trained_parameters": trainable,
        "parameters": model.num_parameters(),
        "max_length": start.max_length,
    }
    return context.publish(built, config.artifact_type(), info={**facts, **info})


def _save_adapter(model: Any, start: Start, built: Path) -> None:
    adapter = model.peft_config["default"]
    adapter.base_model_name_or_path = str(start.folder)
    adapter.target_modules = sorted(adapter.target_modules)  # a set, in no certain order
    model.save_pretrained(built, save_embedding_layers=False)
    (built / "README.md").unlink(missing_ok=True)  # PEFT's empty form


def _stops(known: int | list[int] | None, ends: Iterable[int]) -> list[int]:
    before = [] if known is None else known if isinstance(known, list) else [known]
    return list(dict.fromkeys([*before, *ends]))


def _max_length(config: TunedConfig, model: PreTrainedModel, folder: Path) -> int:
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = int(context or DEFAULT_MAX_LENGTH)
    if config.max_length is None:
        return min(longest, DEFAULT_MAX_LENGTH)
    if config.max_length > longest:
        raise ToolkitError(
            f"max_length {config.max_length} is more than the model's context of {longest} tokens",
            where=str(folder),
            hint=f"set max_length to {longest} at most",
        )
    return config.max_length


def _require_vocabulary(tokenizer: Any, model: PreTrainedModel, folder: Path) -> None:
    largest = max(tokenizer.get_vocab().values())
    rows = model.get_input_embeddings().num_embeddings
    if largest >= rows:
        raise ToolkitError(
            f"the tokenizer has the token id {largest}, the model's embedding {rows} rows",
            where=str(folder),
            hint="the tokenizer belongs to another model",
        )
