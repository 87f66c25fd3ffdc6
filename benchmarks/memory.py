"""Memory by ``toolkit plan`` beside Megatron-LM's ``tools/report_theoretical_memory.py``.

    git clone https://github.com/NVIDIA/Megatron-LM /tmp/megatron-lm
    python benchmarks/memory.py /tmp/megatron-lm

The arithmetic of that tool is ``megatron/training/theoretical_memory_usage.py``; it is loaded from
the checkout by itself, since the rest of it wants a GPU's packages. It models the fullest stage
with BF16 weights, FP32 gradients and Adam; activations with sequence parallelism and selective
recomputation, of layers of 18 h + 4 f bytes a token. It knows nothing of grouped queries and gated
MLPs in activations, of experts' activations, of context parallelism, and of where the output layer
is; so "state" is compared everywhere and "activations" where it counts the same things.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from toolkit.megatron.config import ModelConfig
from toolkit.pipeline.source import read_yaml
from toolkit.plan.describe import model_shape
from toolkit.plan.memory import StageMemory, memory_by_stage
from toolkit.plan.shape import Layout, ModelShape, Precision, Recompute
from toolkit.share import share

MIB = 2**20
SELECTIVE = Recompute(granularity="selective")


def layout(world_size: int, **settings: Any) -> Layout:
    """A layout as the tool models it: sequence-parallel wherever tensor-parallel."""
    tp = settings.get("tp", 1)
    return Layout(
        world_size=world_size,
        sequence_parallel=tp > 1,
        recompute=SELECTIVE,
        **settings,
    )


CASES = (
    ("gpt3-175b", layout(1024, tp=8, pp=16, global_batch_size=1536, seq_length=2048)),
    ("gpt3-175b", layout(512, tp=8, pp=8, vpp=3, global_batch_size=2048, seq_length=2048)),
    ("llama-3-8b", layout(8, tp=2, global_batch_size=128, seq_length=8192)),
    ("llama-3-8b", layout(16, tp=4, pp=2, global_batch_size=128, seq_length=8192)),
    ("llama-3-70b", layout(64, tp=4, pp=8, vpp=5, global_batch_size=256, seq_length=8192)),
    ("llama-3-70b", layout(128, tp=8, pp=4, global_batch_size=256, seq_length=8192)),
    ("llama-3.1-405b", layout(1008, tp=8, pp=9, global_batch_size=1540, seq_length=8192)),
    ("llama-3.1-405b", layout(1008, tp=8, pp=9, cp=2, global_batch_size=1540, seq_length=8192)),
    ("mixtral-8x7b", layout(64, ep=8, pp=2, etp=1, global_batch_size=256, seq_length=4096)),
    ("mixtral-8x7b", layout(64, tp=2, ep=4, etp=1, global_batch_size=256, seq_length=4096)),
)


def load_tool(checkout: Path) -> Any:
    """The module with the tool's arithmetic, its own helpers for printing left out."""
    package = types.ModuleType("megatron_training")
    helpers = types.ModuleType("megatron_training.utils")
    helpers.is_hybrid_model = lambda args: False  # type: ignore[attr-defined]
    helpers.print_rank_0 = lambda *args: None  # type: ignore[attr-defined]
    package.__path__ = []
    sys.modules |= {"megatron_training": package, "megatron_training.utils": helpers}
    file = checkout / "megatron/training/theoretical_memory_usage.py"
    spec = importlib.util.spec_from_file_location("megatron_training.usage", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arguments(model: ModelShape, cut: Layout) -> argparse.Namespace:
    """What Megatron-LM's arguments would be; its data-parallel size leaves CP out."""
    return argparse.Namespace(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size,
        num_attention_heads=model.num_attention_heads,
        kv_channels=model.kv_channels,
        group_query_attention=model.num_query_groups != model.num_attention_heads,
        num_query_groups=model.num_query_groups,
        swiglu=model.gated_linear_unit,
        normalization=model.normalization,
        add_bias_linear=model.add_bias_linear,
        untie_embeddings_and_output_weights=model.untie_embeddings_and_output_weights,
        padded_vocab_size=model.padded_vocab_size(cut.tp),
        num_experts=model.num_moe_experts,
        moe_router_topk=model.moe_router_topk,
        moe_ffn_hidden_size=model.moe_ffn_hidden_size or None,
        moe_layer_freq=1,
        moe_latent_size=None,
        moe_shared_expert_intermediate_size=model.moe_shared_expert_intermediate_size,
        mtp_num_layers=None,
        multi_latent_attention=False,
        world_size=cut.world_size,
        data_parallel_size=cut.dp,
        tensor_model_parallel_size=cut.tp,
        pipeline_model_parallel_size=cut.pp,
        virtual_pipeline_model_parallel_size=cut.vpp if cut.vpp > 1 else None,
        expert_model_parallel_size=cut.ep,
        expert_tensor_parallel_size=cut.expert_tp,
        use_distributed_optimizer=cut.distributed_optimizer,
        seq_length=cut.seq_length,
        micro_batch_size=cut.micro_batch_size,
        sequence_parallel=cut.sequence_parallel,
        recompute_granularity=cut.recompute.granularity,
    )


def ours(model: ModelShape, cut: Layout) -> StageMemory:
    """The first stage, which the tool takes for the fullest."""
    return memory_by_stage(model, cut, Precision(), stages=[0])[0]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path, help="of Megatron-LM")
    tool = load_tool(parser.parse_args().checkout)
    table = Table("model", "layout (MiB)")
    for column in ("state", "tool", "off", "activations", "tool", "off", "total off"):
        table.add_column(column, justify="right")
    for name, cut in CASES:
        file = share("configs", "models", f"{name}.yaml")
        model = model_shape(ModelConfig.model_validate(read_yaml(file).data))
        if name == "gpt3-175b":
            model = replace(model, hidden_dropout=0.1)  # Megatron-LM's default, which the tool has
        theirs = tool.report_theoretical_memory(arguments(model, cut), cut.num_microbatches)
        mine = ours(model, cut)
        state = (mine.weights + mine.gradients + mine.optimizer) / MIB
        kept = mine.activations / MIB
        if cut.pp == 1:
            kept += mine.temporary / MIB
        table.add_row(
            name,
            f"{cut.world_size}: TP{cut.tp} PP{cut.pp} VPP{cut.vpp} CP{cut.cp} EP{cut.ep}",
            f"{state:,.0f}",
            f"{theirs[0]:,.0f}",
            f"{state / theirs[0] - 1:+.1%}",
            f"{kept:,.0f}",
            f"{theirs[1]:,.0f}",
            f"{kept / theirs[1] - 1:+.1%}",
            f"{(state + kept) / (theirs[0] + theirs[1]) - 1:+.1%}",
        )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
