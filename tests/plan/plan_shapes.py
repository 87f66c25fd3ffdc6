"""Presets as shapes, and layouts as published ones are written."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from toolkit.megatron.config import ModelConfig
from toolkit.pipeline.source import read_yaml
from toolkit.plan.describe import model_shape
from toolkit.plan.hardware import GPUS, Hardware
from toolkit.plan.shape import Layout, Machine, ModelShape, Overlap, Precision, Run

PRESETS = Path(__file__).resolve().parents[2] / "configs" / "models"
H100 = Hardware(GPUS["h100"])
DGX = Machine(gpu="h100", capability=(9, 0), gpus_per_node=8)
FP8 = Precision(fp8="hybrid", fp8_recipe="tensorwise", fp8_param=True, grad_reduce_in_fp32=False)
"""What NVIDIA's performance recipes for the H100 run in."""


def preset(name: str, **changes: Any) -> ModelShape:
    """The model of ``configs/models/NAME.yaml``."""
    settings = read_yaml(PRESETS / f"{name}.yaml").data
    return replace(model_shape(ModelConfig.model_validate(settings)), **changes)


def published(
    world_size: int,
    global_batch_size: int,
    seq_length: int,
    tp: int = 1,
    pp: int = 1,
    cp: int = 1,
    vpp: int = 1,
    **settings: Any,
) -> Layout:
    """A layout with all communication overlapped that can be."""
    overlap = Overlap(grad_reduce=True, param_gather=True, p2p=vpp > 1, tp_comm=tp > 1)
    return Layout(
        world_size=world_size,
        global_batch_size=global_batch_size,
        seq_length=seq_length,
        tp=tp,
        pp=pp,
        cp=cp,
        vpp=vpp,
        sequence_parallel=tp > 1,
        overlap=overlap,
        **settings,
    )


def run(model: ModelShape, layout: Layout, precision: Precision = FP8) -> Run:
    """The whole, on a DGX H100."""
    return Run(model, layout, precision, DGX)
