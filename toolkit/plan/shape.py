"""A run in the numbers that planning needs: the model, its layout, number formats, the machine.

Frozen and free of pydantic and torch: ``toolkit plan --search`` makes thousands of them. The short
names are the field's own: TP, PP, VPP, CP, EP, ETP and DP.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

Granularity = Literal["selective", "full"]
Sharding = Literal["no_shard", "optim", "optim_grads", "optim_grads_params"]


@dataclass(frozen=True)
class ModelShape:
    """A GPT model, all defaults filled in; the names are those of ``TransformerConfig``."""

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    kv_channels: int
    max_position_embeddings: int
    kv_channels_follow: bool = True
    """Whether ``kv_channels`` was left to follow from the width and the heads."""
    vocab_size: int | None = None
    """Tokens of the tokenizer, without padding; None where nobody knows yet."""
    make_vocab_size_divisible_by: int = 128
    gated_linear_unit: bool = True
    activation_func: str = "silu"
    add_bias_linear: bool = False
    add_qkv_bias: bool = False
    qk_layernorm: bool = False
    normalization: str = "RMSNorm"
    position_embedding_type: str = "rope"
    rotary_percent: float = 1.0
    untie_embeddings_and_output_weights: bool = True
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    num_moe_experts: int | None = None
    moe_router_topk: int = 2
    moe_ffn_hidden_size: int = 0
    """Inner width of one expert; 0 in a dense model."""
    moe_shared_expert_intermediate_size: int | None = None
    """Inner width of all shared experts of a layer together."""
    moe_shared_expert_gate: bool = False
    moe_layers: tuple[bool, ...] = ()
    """For each layer whether it has experts; empty in a dense model."""
    moe_router_pre_softmax: bool = False
    moe_router_score_function: str = "softmax"
    moe_router_num_groups: int | None = None
    moe_router_group_topk: int | None = None
    moe_router_enable_expert_bias: bool = False
    moe_router_load_balancing_type: str = "aux_loss"
    moe_aux_loss_coeff: float = 0.0
    moe_expert_capacity_factor: float | None = None
    moe_pad_expert_input_to_capacity: bool = False

    def padded_vocab_size(self, tp: int) -> int:
        """Rows of the embedding at a tensor-parallel size, as the training itself pads it."""
        assert self.vocab_size is not None, "the vocabulary's size is not known"
        multiple = math.lcm(self.make_vocab_size_divisible_by, tp)
        return -(-self.vocab_size // multiple) * multiple

    def is_moe_layer(self, layer: int) -> bool:
        """Whether the layer of this number, from 0, has experts in place of one MLP."""
        return bool(self.moe_layers) and self.moe_layers[layer]


@dataclass(frozen=True)
class Recompute:
    """What is computed again in the backward pass in place of being kept."""

    granularity: Granularity | None = None
    method: Literal["uniform", "block"] | None = None
    num_layers: int | None = None
    """Layers of a recomputed chunk (uniform), or recomputed layers of a model chunk (block)."""
    modules: tuple[str, ...] = ()
    """Of selective recomputation; empty stands for Megatron's default, ``core_attn``."""
    distribute_saved_activations: bool = False


@dataclass(frozen=True)
class Overlap:
    """Communication that runs beside the computation."""

    grad_reduce: bool = False
    param_gather: bool = False
    p2p: bool = False
    tp_comm: bool = False
    moe_expert_parallel_comm: bool = False
    delay_wgrad_compute: bool = False


@dataclass(frozen=True)
class MoeKernels:
    """How tokens reach their experts; this changes the speed and not the result."""

    token_dispatcher: Literal["allgather", "alltoall", "flex"] = "alltoall"
    grouped_gemm: bool = False
    permute_fusion: bool = False
    router_fusion: bool = False
    shared_expert_overlap: bool = False


@dataclass(frozen=True)
class Fusions:
    """Which kernels attention runs in, and which operations are one; None is what fits a GPU."""

    attention_backend: str = "auto"
    bias_activation: bool | None = None
    bias_dropout: bool | None = None
    rope: bool | None = None
    gradient_accumulation: bool | None = None
    cross_entropy: bool | None = None
    cross_entropy_impl: Literal["native", "te"] = "native"


@dataclass(frozen=True)
class Layout:
    """How a run is cut over its ranks; ``unread`` is settings, as JSON, that no estimate needs."""

    world_size: int = 1
    tp: int = 1
    pp: int = 1
    vpp: int = 1
    """Model chunks on each pipeline rank; 1 without the interleaved schedule."""
    cp: int = 1
    ep: int = 1
    etp: int | None = None
    """Tensor parallelism of the experts; None stands for ``tp``."""
    sequence_parallel: bool = False
    cp_comm_type: Literal["p2p", "a2a", "all_gather", "a2a+p2p"] = "p2p"
    hierarchical_cp: tuple[int, ...] = ()
    """Inner and outer size of ``a2a+p2p``."""
    microbatch_group: int | None = None
    """``microbatch_group_size_per_vp_stage``; None stands for ``pp``."""
    first_stage_layers: int | None = None
    """``num_layers_in_first_pipeline_stage``; None where all stages have as many."""
    last_stage_layers: int | None = None
    account_for_embedding: bool = False
    account_for_loss: bool = False
    stages: tuple[str, ...] = ()
    """Of ``pipeline_model_parallel_layout`` the letters of each stage, ``("Ett", "tt", "L")``."""
    stages_mistake: str | None = None
    """Why there are none, where the layout can't be read."""
    micro_batch_size: int = 1
    global_batch_size: int = 1
    seq_length: int = 2048
    """Tokens of a whole sequence, before context parallelism cuts it."""
    distributed_optimizer: bool = True
    optimizer_instances: int = 1
    """``num_distributed_optimizer_instances``: replicas of the sharded optimizer state."""
    fsdp: Literal["megatron", "torch"] | None = None
    sharding: Sharding = "optim_grads_params"
    """What Megatron's FSDP shards over the data-parallel ranks."""
    outer_sharding: Literal["no_shard", "optim"] = "no_shard"
    fsdp_double_buffer: bool = False
    nccl_ub: bool = False
    reshard_after_forward: bool = True
    recompute: Recompute = field(default=Recompute())
    overlap: Overlap = field(default=Overlap())
    moe: MoeKernels = field(default=MoeKernels())
    fusions: Fusions = field(default=Fusions())
    unread: tuple[tuple[str, str], ...] = ()

    @property
    def model_parallel_size(self) -> int:
        """Ranks that hold one copy of the model and one sequence: TP x PP x CP."""
        return self.tp * self.pp * self.cp

    @property
    def expert_tp(self) -> int:
        """Tensor parallelism of the experts, the default filled in."""
        return self.tp if self.etp is None else self.etp

    @property
    def expert_model_parallel_size(self) -> int:
        """Ranks that hold all experts once: ETP x EP x PP."""
        return self.expert_tp * self.ep * self.pp

    @property
    def dp(self) -> int:
        """Copies of the model that take other samples; rounded down where it does not divide."""
        return self.world_size // self.model_parallel_size

    @property
    def expert_dp(self) -> int:
        """Copies of each expert; rounded down where it does not divide."""
        return self.world_size // self.expert_model_parallel_size

    @property
    def has_own_stages(self) -> bool:
        """Whether a ``pipeline_model_parallel_layout`` says which stage has which layers."""
        return bool(self.stages) or self.stages_mistake is not None

    @property
    def num_microbatches(self) -> int:
        """Microbatches that a rank accumulates; rounded down where it does not divide."""
        return self.global_batch_size // max(1, self.micro_batch_size * self.dp)


@dataclass(frozen=True)
class Precision:
    """Number formats of the computation, of the gradients and of the optimizer's state."""

    weights: Literal["fp32", "bf16", "fp16"] = "bf16"
    fp8: Literal["hybrid", "e4m3"] | None = None
    fp8_recipe: Literal["delayed", "tensorwise", "blockwise", "mxfp8"] = "delayed"
    fp8_dot_product_attention: bool = False
    fp8_param: bool = False
    """Whether the weights are kept in FP8, too (``fp8_param_gather``)."""
    fp4: Literal["e2m1"] | None = None
    fp4_recipe: Literal["nvfp4"] = "nvfp4"
    first_last_layers_bf16: bool = False
    num_layers_at_start_in_bf16: int = 1
    num_layers_at_end_in_bf16: int = 1
    grad_reduce_in_fp32: bool = True
    precision_aware_optimizer: bool = False
    main_grads_dtype: Literal["fp32", "bf16"] = "fp32"
    main_params_dtype: Literal["fp32", "fp16"] = "fp32"
    exp_avg_dtype: Literal["fp32", "fp16", "bf16", "fp8"] = "fp32"
    exp_avg_sq_dtype: Literal["fp32", "fp16", "bf16", "fp8"] = "fp32"


@dataclass(frozen=True)
class Machine:
    """What the rules need to know of a GPU and the software on it; None is not known."""

    gpu: str | None = None
    """The type in a profile's words: ``h100``."""
    capability: tuple[int, int] | None = None
    """Compute capability: (9, 0) for Hopper."""
    gpus_per_node: int | None = None
    transformer_engine: str | None = None
    cuda: str | None = None
    torch: str | None = None
    megatron_core: str | None = None
    environment: tuple[tuple[str, str], ...] = ()
    """Variables that jobs get: (name, value)."""


@dataclass(frozen=True)
class Run:
    """A training run as the rules see it."""

    model: ModelShape
    layout: Layout = field(default=Layout())
    precision: Precision = field(default=Precision())
    machine: Machine = field(default=Machine())


def stage_layers(model: ModelShape, layout: Layout) -> tuple[tuple[int, ...], ...]:
    """For each pipeline rank, in order, the numbers of layers in each of its model chunks.

    Follows ``get_num_layers_to_build`` (``transformer_block.py``). Only for layouts that the rules
    accept: where something does not divide, the quotients are rounded down.
    """
    if layout.stages and len(layout.stages) == layout.pp * layout.vpp:
        return _counted(layout.stages, layout.pp)
    return _split(
        model.num_layers,
        layout.pp,
        layout.vpp,
        (layout.first_stage_layers, layout.last_stage_layers),
        (layout.account_for_embedding, layout.account_for_loss),
    )


@lru_cache(maxsize=4096)
def _counted(stages: tuple[str, ...], pp: int) -> tuple[tuple[int, ...], ...]:
    """The decoder layers of each stage; stage after stage goes round the ranks."""
    counts = [stage.count("t") for stage in stages]
    return tuple(tuple(counts[rank::pp]) for rank in range(pp))


@lru_cache(maxsize=4096)
def _split(
    layers: int,
    pp: int,
    vpp: int,
    ends: tuple[int | None, int | None],
    counted: tuple[bool, bool],
) -> tuple[tuple[int, ...], ...]:
    middle = layers - sum(end or 0 for end in ends) + sum(counted)
    stages = pp - sum(end is not None for end in ends)
    per_rank = [middle // max(1, stages)] * pp
    if ends[0] is not None:
        per_rank[0] = ends[0]
    if ends[1] is not None:
        per_rank[-1] = ends[1]
    chunks = [[own // vpp] * vpp for own in per_rank]
    chunks[0][0] -= counted[0]
    chunks[-1][-1] -= counted[1]
    return tuple(tuple(rank) for rank in chunks)
