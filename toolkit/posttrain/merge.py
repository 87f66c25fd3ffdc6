"""The ``merge`` stage: an adapter added into its base, refused where the logits don't agree."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from toolkit.artifacts import Artifact
from toolkit.context import StageContext
from toolkit.errors import StageError
from toolkit.hf import adapter_config, load_adapter, load_model, load_tokenizer, merge
from toolkit.posttrain.config import MergeConfig
from toolkit.posttrain.loop import full_disk_is_told
from toolkit.posttrain.trainer import quiet_libraries
from toolkit.posttrain.tuning import dense_dtype

logger = logging.getLogger(__name__)

TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.15, torch.float16: 0.15}
"""Largest difference of a logit that rounding the merged weights explains."""
PROBE_ROWS, PROBE_LENGTH = 4, 64
"""Shape of the fixed inputs."""


def run(config: MergeConfig, context: StageContext) -> Artifact:
    """Merge, save, load what was saved, and compare it with base and adapter apart.

    Raises:
        ToolkitError: the adapter's method can't be merged, its base is not there, or they don't
            fit.
        StageError: the logits differ by more than the tolerance.
    """
    quiet_libraries()
    folder = context.path(config.adapter)
    dtype = dense_dtype(folder) if config.dtype == "auto" else getattr(torch, config.dtype)
    tolerance = TOLERANCES[dtype] if config.tolerance is None else config.tolerance
    applied = load_adapter(folder)  # fp32: what is compared with, and merged, is not rounded
    wanted = probe(applied)
    built = context.building()
    merged = merge(applied, folder)
    with full_disk_is_told(built):
        merged.to(dtype).save_pretrained(built)
    load_tokenizer(folder).save_pretrained(built)
    del applied, merged
    difference = require_same_logits(built, wanted, tolerance)
    info = {
        "adapter": config.adapter,
        "method": adapter_config(folder).get("peft_type"),
        "dtype": str(dtype).removeprefix("torch."),
        "largest_logit_difference": difference,
        "tolerance": tolerance,
    }
    return context.publish(built, "model", info=info)


def probe(model: Any) -> torch.Tensor:
    """The logits of a model on fixed random ids, (rows, length, vocabulary), fp32."""
    config = model.config.get_text_config()
    length = min(PROBE_LENGTH, getattr(config, "max_position_embeddings", PROBE_LENGTH))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size, (PROBE_ROWS, length), generator=generator)
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return logits.float()


def require_same_logits(built: Path, wanted: torch.Tensor, tolerance: float) -> float:
    """Compare the saved model's logits with those wanted; returns the largest difference.

    Raises:
        StageError: it is more than the tolerance, or not finite.
    """
    saved: PreTrainedModel = load_model(built)
    difference = float((probe(saved) - wanted).abs().max())
    if not difference <= tolerance:
        raise StageError(
            f"the merged model's logits differ by {difference:.4g} from those of base and adapter, "
            f"more than the tolerance of {tolerance:.4g}",
            hint="use the adapter unmerged, save with dtype: float32, or raise tolerance if you "
            "accept the difference",
        )
    logger.info("merged; the logits differ by %.3g at most", difference)
    return difference
