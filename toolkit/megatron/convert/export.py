"""``export``: a Megatron checkpoint of any parallel layout to a Hugging Face folder.

One whole model is in memory at a time: Megatron's until its weights are on disk, then the Hugging
Face model that is read back from there, whose logits must be the same.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from toolkit.artifacts import Artifact, write_json
from toolkit.context import StageContext
from toolkit.hf import load_model, load_tokenizer
from toolkit.megatron.config import ParallelConfig
from toolkit.megatron.convert import gate
from toolkit.megatron.convert.config import ExportConfig
from toolkit.megatron.convert.families import Family, family_of
from toolkit.megatron.convert.known import FAMILIES
from toolkit.megatron.convert.mapping import to_hf
from toolkit.megatron.convert.network import build_network, parameters, read_weights, round_to
from toolkit.megatron.convert.source import Source, open_checkpoint
from toolkit.megatron.convert.tokens import copy_tokenizer, require_vocabulary, special_tokens
from toolkit.megatron.convert.weights import write_weights
from toolkit.megatron.distributed import process_groups

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Written:
    """What is known of the Megatron model once it is on disk and out of memory."""

    logits: list[Tensor]
    dtype: torch.dtype
    parameters: int
    rounding: float | None
    """Largest change of a logit by rounding to ``dtype``; None where nothing was rounded."""


def run(config: ExportConfig, context: StageContext) -> Artifact:
    """Export ``config.checkpoint``; see ``ExportConfig``.

    Raises:
        ToolkitError: not a checkpoint, or of a model that no known architecture represents.
        StageError: the logits of the exported model differ.
    """
    source = open_checkpoint(context.artifact(config.checkpoint).folder, config.iteration)
    family = family_of(source.model, FAMILIES)
    tokenizer = load_tokenizer(source.tokenizer)
    require_vocabulary(tokenizer, source.model, str(source.tokenizer))
    tokens = special_tokens(tokenizer)
    logger.info("exporting %s as %s", source.folder, family.architecture)

    built = context.building()
    sequences = gate.token_sequences(source.model, config.compare_tokens)
    with process_groups(ParallelConfig()):
        written = _write(config, source, family, sequences, built, context)
    hf_config = family.hf_config(source.model, tokens.config())
    _write_config(hf_config, family.architecture, written.dtype, built)
    tokens.generation_config().save_pretrained(built)
    copy_tokenizer(source.tokenizer, built)

    found = gate.compare(written.logits, gate.hf_logits(load_model(built), sequences))
    gate.require(found, config.tolerance, source.folder)
    return context.publish(built, "model", info=_info(source, family, written, found))


def _write(
    config: ExportConfig,
    source: Source,
    family: Family,
    sequences: list[Tensor],
    built: Path,
    context: StageContext,
) -> Written:
    """Load the checkpoint, write its weights in Hugging Face's terms, and keep its logits."""
    model = source.model
    network = build_network(model)
    stored = read_weights(network, source.folder, model)
    dtype = stored if config.dtype == "auto" else getattr(torch, config.dtype)
    logits, rounding = gate.megatron_logits(network, model, sequences), None
    if dtype not in (stored, torch.float32):
        exact = logits
        round_to(network, dtype)
        logits = gate.megatron_logits(network, model, sequences)
        rounding = gate.compare(exact, logits).max_difference
        logger.info("rounding the weights to %s moves logits by up to %.2e", dtype, rounding)
    rules = list(family.rules(model))
    tensors = to_hf(rules, parameters(network), model)
    total = sum(len(rule.hf) for rule in rules)
    count = write_weights(_watched(tensors, total, context), built, dtype, config.max_shard_bytes())
    return Written(logits, dtype, count, rounding)


def _watched(
    tensors: Iterator[tuple[str, Tensor]], total: int, context: StageContext
) -> Iterator[tuple[str, Tensor]]:
    for number, item in enumerate(tensors, start=1):
        yield item
        context.progress(number, total, unit="tensors")


def _write_config(
    config: PreTrainedConfig, architecture: str, dtype: torch.dtype, folder: Path
) -> None:
    """Write config.json, with the rotary settings under their old names too.

    transformers before 5, and programs that read config.json as it did, know no
    ``rope_parameters`` and would take a base of 10000, silently.
    """
    config.architectures, config.dtype = [architecture], dtype
    config.save_pretrained(folder)
    path = folder / "config.json"
    keys = json.loads(path.read_text(encoding="utf-8"))
    rope = keys.get("rope_parameters")
    if rope:
        keys["rope_theta"] = rope["rope_theta"]
        scaled = {key: value for key, value in rope.items() if key != "rope_theta"}
        keys["rope_scaling"] = scaled if rope["rope_type"] != "default" else None
    keys["torch_dtype"] = keys["dtype"]
    write_json(path, dict(sorted(keys.items())))


def _info(
    source: Source, family: Family, written: Written, found: gate.Comparison
) -> dict[str, Any]:
    rounding = {} if written.rounding is None else {"rounding_logit_difference": written.rounding}
    return {
        "architecture": family.architecture,
        "parameters": written.parameters,
        "dtype": str(written.dtype).removeprefix("torch."),
        "vocab_size": source.model.vocab_size,
        "iteration": source.iteration,
        **found.info(),
        **rounding,
    }
