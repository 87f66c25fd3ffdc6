"""``import``: a Hugging Face folder to a Megatron checkpoint, for ``pretrain``'s ``load``.

At most two models are in memory at a time: Hugging Face's and Megatron's while the weights go from
one to the other. Then Megatron's is read back from disk alone, and its logits must be the same.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from pydantic import ValidationError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from toolkit.artifacts import Artifact
from toolkit.context import StageContext
from toolkit.data.tokenizer_folder import take_tokenizer
from toolkit.errors import ToolkitError
from toolkit.hf import UNREADABLE, load_tokenizer
from toolkit.megatron import checkpoint
from toolkit.megatron.config import ModelConfig, ParallelConfig, TrainedModel
from toolkit.megatron.convert import gate
from toolkit.megatron.convert.config import ImportConfig
from toolkit.megatron.convert.families import Family, family_for
from toolkit.megatron.convert.known import FAMILIES
from toolkit.megatron.convert.mapping import to_megatron
from toolkit.megatron.convert.network import build_network, parameters, read_weights, write_weights
from toolkit.megatron.convert.source import TOKENIZER
from toolkit.megatron.convert.tokens import require_vocabulary
from toolkit.megatron.distributed import process_groups
from toolkit.megatron.layout import padded_vocab_size

logger = logging.getLogger(__name__)

ITERATION = 0


@dataclass(frozen=True, slots=True)
class Source:
    """A Hugging Face folder whose configuration Megatron can represent."""

    folder: Path
    family: Family
    model: TrainedModel


def run(config: ImportConfig, context: StageContext) -> Artifact:
    """Import ``config.model``; see ``ImportConfig``.

    Raises:
        ToolkitError: not a model, damaged, or with features that Megatron's model hasn't.
        StageError: the logits of the imported model differ.
    """
    source = open_model(context.artifact(config.model).folder)
    require_vocabulary(load_tokenizer(source.folder), source.model, str(source.folder))
    logger.info("importing %s from %s", source.family.architecture, source.folder)

    built = context.building()
    sequences = gate.token_sequences(source.model, config.compare_tokens)
    with process_groups(ParallelConfig()):
        reference, dtype = _write(config, source, sequences, checkpoint.begin(built, ITERATION))
        folder = checkpoint.commit(built, ITERATION, keep_last=1)
        network = build_network(source.model)
        read_weights(network, folder, source.model)
        found = gate.compare(reference, gate.megatron_logits(network, source.model, sequences))
    gate.require(found, config.tolerance, source.folder)

    checkpoint.write_model(built, source.model)
    take_tokenizer(source.folder, built / TOKENIZER)
    count = sum(tensor.numel() for tensor in parameters(network).values())
    return context.publish(built, "checkpoint", info=_info(source, dtype, count, found))


def open_model(folder: Path) -> Source:
    """Read and check ``config.json``; no weights are read.

    Raises:
        ToolkitError: everything in it that can't be converted, by key and value.
    """
    path = folder / "config.json"
    raw, config = _read_config(path)
    family = family_for(raw, FAMILIES, str(path))
    problems = [*_foreign_keys(raw), *family.refusals(config)]
    if problems:
        lines = "\n  ".join(problems)
        raise ToolkitError(f"this model can't be imported:\n  {lines}", where=str(path))
    model = _model_config(family, config, path)
    padded = padded_vocab_size(config.vocab_size, model.make_vocab_size_divisible_by, 1)
    return Source(folder, family, TrainedModel.of(model, config.vocab_size, padded))


def _read_config(path: Path) -> tuple[dict[str, Any], PreTrainedConfig]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return raw, AutoConfig.from_pretrained(path.parent, local_files_only=True)
    except (*UNREADABLE, TypeError, StrictDataclassError) as error:
        raise ToolkitError(f"transformers can't read it: {error}", where=str(path)) from error


def _foreign_keys(raw: dict[str, Any]) -> Iterator[str]:
    """What would change the weights or the computation behind the architecture's back."""
    for key in ("quantization_config", "auto_map"):
        if raw.get(key):
            yield f"{key} is set: only unquantised models of transformers' own code are converted"


def _model_config(family: Family, config: PreTrainedConfig, path: Path) -> ModelConfig:
    try:
        return family.model_config(config)
    except ValidationError as error:
        raise ToolkitError(
            f"Megatron's model can't have these dimensions: {error}", where=str(path)
        ) from error


def _write(
    config: ImportConfig, source: Source, sequences: list[Tensor], folder: Path
) -> tuple[list[Tensor], torch.dtype]:
    """Write the weights as a checkpoint; returns the logits to reach, and the data type."""
    theirs = _load(source.folder)
    dtype = theirs.dtype if config.dtype == "auto" else getattr(torch, config.dtype)
    _round_to(theirs, dtype)
    logits = gate.hf_logits(theirs, sequences)
    network = build_network(source.model)
    own = parameters(network)
    rules = source.family.rules(source.model)
    for name, tensor in to_megatron(rules, _weights(theirs), source.model):
        own[name].copy_(tensor)
    del theirs
    write_weights(network, folder, dtype)
    return logits, dtype


def _round_to(network: PreTrainedModel, dtype: torch.dtype) -> None:
    """Make the weights float32 again, rounded to ``dtype``; the rotary frequencies stay exact,
    which ``network.to`` would round too."""
    for parameter in network.parameters():
        parameter.data = parameter.data.to(dtype).float()


def _load(folder: Path) -> PreTrainedModel:
    """The model with all of its weights: transformers itself fills missing ones at random."""
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype="auto",
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told below, by name
        )
    except UNREADABLE as error:
        raise ToolkitError(
            f"transformers can't load the model: {error}", where=str(folder)
        ) from error
    for what in ("missing", "unexpected", "mismatched"):
        if keys := sorted(map(str, loading[f"{what}_keys"])):
            raise ToolkitError(
                f"{len(keys)} {what} weights, such as {keys[0]}",
                where=str(folder),
                hint="the files don't hold what config.json describes",
            )
    return model.eval()


def _weights(network: PreTrainedModel) -> dict[str, Tensor]:
    """The weights by name; one that is tied has its first name alone."""
    return {name: parameter.data for name, parameter in network.named_parameters()}


def _info(source: Source, dtype: torch.dtype, count: int, found: gate.Comparison) -> dict[str, Any]:
    return {
        "iteration": ITERATION,
        "consumed_samples": 0,
        "parameters": count,
        "architecture": source.family.architecture,
        "dtype": str(dtype).removeprefix("torch."),
        "vocab_size": source.model.vocab_size,
        "layout": {
            "world_size": 1,
            "tensor_model_parallel_size": 1,
            "pipeline_model_parallel_size": 1,
            "data_parallel_size": 1,
        },
        **found.info(),
    }
