"""Ways to share a model over two or four ranks of a CPU, for tests of what they have in common."""

from importlib.util import find_spec
from typing import Any

from pretrain_runs import GPT2, LLAMA

EXPERTS = {
    **LLAMA,
    "num_moe_experts": 4,
    "moe_ffn_hidden_size": 96,
    "moe_layer_freq": [0, 1, 1, 1],
    "moe_shared_expert_intermediate_size": 64,
    "moe_z_loss_coeff": 1e-3,
    "moe_router_dtype": "fp32",
}
"""Without a load-balancing loss: it is a mean over microbatches, which layouts make differently."""
DEEPER = {**LLAMA, "num_layers": 6}
MODELS = {"llama": LLAMA, "gpt2": GPT2, "experts": EXPERTS, "deeper": DEEPER}
TWO = {"resources": {"ntasks_per_node": 2}}
FOUR = {"resources": {"ntasks_per_node": 4}}
TORCH_FSDP = {"use_distributed_optimizer": False, "parallel": {"use_torch_fsdp2": True}}
EINOPS = find_spec("einops") is not None
NESTED = ("optimizer-instances", "megatron-fsdp")
"""How the names begin of what Megatron orders with einops."""


def parallel(**degrees: Any) -> dict[str, Any]:
    """The ``parallel`` setting; degrees by their short names, all else as it is called."""
    short = {
        "tensor": "tensor_model_parallel_size",
        "pipeline": "pipeline_model_parallel_size",
        "virtual": "virtual_pipeline_model_parallel_size",
        "context": "context_parallel_size",
        "expert": "expert_model_parallel_size",
        "expert_tensor": "expert_tensor_parallel_size",
        "group": "microbatch_group_size_per_vp_stage",
        "layout": "pipeline_model_parallel_layout",
    }
    return {"parallel": {short.get(name, name): size for name, size in degrees.items()}}


def recomputed(method: str, layers: int) -> dict[str, Any]:
    """Settings of full recomputation."""
    return {
        "recompute_granularity": "full",
        "recompute_method": method,
        "recompute_num_layers": layers,
    }


PIPELINES: dict[tuple[str, str], dict[str, Any]] = {
    ("llama", "pipeline"): parallel(pipeline=2),
    ("gpt2", "interleaved"): parallel(pipeline=2, virtual=2),
    ("deeper", "uneven-interleaved"): parallel(
        pipeline=2, virtual=2, num_layers_in_first_pipeline_stage=4
    ),
    ("deeper", "uneven-recomputed"): parallel(pipeline=2, num_layers_in_last_pipeline_stage=2)
    | recomputed("block", 3),
    ("llama", "embedding-and-loss-counted"): parallel(
        pipeline=2,
        virtual=3,
        account_for_embedding_in_pipeline_split=True,
        account_for_loss_in_pipeline_split=True,
    ),
    ("llama", "layout"): parallel(pipeline=2, layout="Et*3|t,L"),
    ("gpt2", "layout-with-the-ends-alone"): parallel(pipeline=2, layout="E|t|tt||t|L"),
    ("experts", "layout-of-lists"): parallel(
        pipeline=2,
        layout=[["embedding"], ["decoder"] * 3, ["decoder"], ["loss"]],
    ),
    ("llama", "groups-of-microbatches"): parallel(pipeline=2, virtual=2, group=4),
    ("llama", "tensor-pipeline"): parallel(tensor=2, pipeline=2),
    ("gpt2", "tensor-pipeline"): parallel(tensor=2, pipeline=2),
    ("llama", "interleaved-context"): parallel(pipeline=2, virtual=2, context=2),
    ("experts", "pipeline"): parallel(pipeline=2),
}
SEQUENCES = {
    ("gpt2", "sequence"): parallel(tensor=2, sequence_parallel=True),
    ("gpt2", "context"): parallel(context=2),
    ("llama", "tensor-sequence-context"): parallel(tensor=2, sequence_parallel=True, context=2),
}
RECOMPUTED = {
    ("llama", "recomputed"): parallel(pipeline=2) | recomputed("uniform", 1),
    ("llama", "saved-activations-shared"): parallel(tensor=2)
    | recomputed("block", 2)
    | {"distribute_saved_activations": True},
    ("llama", "selective-recompute"): TWO
    | {"recompute_granularity": "selective", "recompute_modules": ["core_attn", "mlp"]},
}
OPTIMIZERS = {
    ("llama", "distributed-optimizer"): TWO | {"use_distributed_optimizer": True},
    ("llama", "replicated-optimizer"): TWO | {"use_distributed_optimizer": False},
    ("llama", "overlapped-reduction"): TWO
    | parallel(overlap_grad_reduce=True, overlap_param_gather=True),
    ("llama", "optimizer-instances"): FOUR | parallel(num_distributed_optimizer_instances=2),
}
EXPERT_RANKS = {
    ("experts", "expert"): TWO | parallel(expert=2),
    ("experts", "expert-allgather"): TWO
    | parallel(expert=2, moe_token_dispatcher_type="allgather"),
    ("experts", "tensor-sequence"): parallel(tensor=2, sequence_parallel=True),
    ("experts", "tensor-of-the-attention-alone"): parallel(
        tensor=2, sequence_parallel=True, expert=2, expert_tensor=1
    ),
    ("experts", "context-expert"): parallel(context=2, expert=2),
    ("experts", "tensor-expert-data"): FOUR | parallel(tensor=2, sequence_parallel=True, expert=2),
}
FSDP: dict[tuple[str, str], dict[str, Any]] = {
    ("experts", "torch-fsdp-context"): TORCH_FSDP
    | parallel(use_torch_fsdp2=True, context=2, torch_fsdp2_reshard_after_forward=False),
    ("llama", "torch-fsdp-tensor-sequence"): TORCH_FSDP
    | FOUR
    | parallel(use_torch_fsdp2=True, tensor=2, sequence_parallel=True),
    ("gpt2", "megatron-fsdp"): TWO | parallel(use_megatron_fsdp=True, fsdp_double_buffer=True),
    ("llama", "megatron-fsdp-optimizer-alone"): TWO
    | parallel(use_megatron_fsdp=True, data_parallel_sharding_strategy="optim"),
    ("llama", "megatron-fsdp-tensor-sequence"): FOUR
    | parallel(
        use_megatron_fsdp=True,
        data_parallel_sharding_strategy="optim_grads",
        tensor=2,
        sequence_parallel=True,
    ),
    ("experts", "megatron-fsdp-expert"): FOUR | parallel(use_megatron_fsdp=True, expert=2),
    ("llama", "megatron-fsdp-outer"): FOUR
    | parallel(
        use_megatron_fsdp=True,
        num_distributed_optimizer_instances=2,
        outer_dp_sharding_strategy="optim",
    ),
}
TENSORS = {("llama", "tensor"): parallel(tensor=2)}
LAYOUTS = TENSORS | PIPELINES | SEQUENCES | RECOMPUTED | OPTIMIZERS | EXPERT_RANKS | FSDP
"""By model and name; the ranks follow from the degrees, or are said."""
