"""A layout as the settings of a pretrain stage: the way back from ``toolkit.plan.describe``."""

from __future__ import annotations

import json
from operator import attrgetter

from toolkit.megatron.pipeline_layout import text_of
from toolkit.plan.shape import Layout

PARALLEL = {
    "tensor_model_parallel_size": "tp",
    "pipeline_model_parallel_size": "pp",
    "virtual_pipeline_model_parallel_size": "vpp",
    "microbatch_group_size_per_vp_stage": "microbatch_group",
    "num_layers_in_first_pipeline_stage": "first_stage_layers",
    "num_layers_in_last_pipeline_stage": "last_stage_layers",
    "account_for_embedding_in_pipeline_split": "account_for_embedding",
    "account_for_loss_in_pipeline_split": "account_for_loss",
    "sequence_parallel": "sequence_parallel",
    "context_parallel_size": "cp",
    "expert_model_parallel_size": "ep",
    "num_distributed_optimizer_instances": "optimizer_instances",
    "moe_token_dispatcher_type": "moe.token_dispatcher",
    "moe_grouped_gemm": "moe.grouped_gemm",
    "moe_permute_fusion": "moe.permute_fusion",
    "moe_router_fusion": "moe.router_fusion",
    "moe_shared_expert_overlap": "moe.shared_expert_overlap",
    "overlap_param_gather": "overlap.param_gather",
    "tp_comm_overlap": "overlap.tp_comm",
    "overlap_moe_expert_parallel_comm": "overlap.moe_expert_parallel_comm",
    "delay_wgrad_compute": "overlap.delay_wgrad_compute",
    "data_parallel_sharding_strategy": "sharding",
    "outer_dp_sharding_strategy": "outer_sharding",
    "fsdp_double_buffer": "fsdp_double_buffer",
    "nccl_ub": "nccl_ub",
    "torch_fsdp2_reshard_after_forward": "reshard_after_forward",
}
"""By the names of a stage's ``parallel``, what a layout calls them."""
FSDP = {"megatron": "use_megatron_fsdp", "torch": "use_torch_fsdp2"}
UNREAD_OF_BUFFERS = (
    "tp_comm_overlap_cfg",
    "tp_comm_overlap_ag",
    "tp_comm_overlap_rs",
    "tp_comm_overlap_rs_dgrad",
    "tp_comm_bootstrap_backend",
)
"""Of ``parallel``, what goes with tp_comm_overlap alone and is handed on as it is."""
UNREAD_OF_FSDP = ("suggested_communication_unit_size", "keep_fp8_transpose_cache")
"""Likewise with use_megatron_fsdp."""
RECOMPUTE = {
    "recompute_granularity": "granularity",
    "recompute_method": "method",
    "recompute_num_layers": "num_layers",
    "recompute_modules": "modules",
    "distribute_saved_activations": "distribute_saved_activations",
}


def settings_of(layout: Layout, given: Layout) -> dict[str, object]:
    """The settings that turn a stage with the layout ``given`` into one with ``layout``.

    ``parallel`` is meant to take the place of the stage's own: it has all that differs from the
    defaults, what ``given`` brought and a search keeps included. Of the others there are those that
    have to change, back to null where the stage recomputes and the layout does not.
    """
    found: dict[str, object] = {}
    if layout.micro_batch_size != given.micro_batch_size:
        found["micro_batch_size"] = layout.micro_batch_size
    if layout.distributed_optimizer != given.distributed_optimizer:
        found["use_distributed_optimizer"] = layout.distributed_optimizer
    found["parallel"] = _parallel(layout)
    for name, field in RECOMPUTE.items():
        new, old = getattr(layout.recompute, field), getattr(given.recompute, field)
        if new != old:
            found[name] = (list(new) or None) if isinstance(new, tuple) else new
    return found


def _parallel(layout: Layout) -> dict[str, object]:
    plain = Layout()
    found = {
        name: attrgetter(field)(layout)
        for name, field in PARALLEL.items()
        if attrgetter(field)(layout) != attrgetter(field)(plain)
    }
    if layout.fsdp is not None:
        found[FSDP[layout.fsdp]] = True
    kept: tuple[str, ...] = UNREAD_OF_BUFFERS if layout.overlap.tp_comm else ()
    kept += UNREAD_OF_FSDP if layout.fsdp == "megatron" else ()
    found |= {name: json.loads(text) for name, text in layout.unread if name in kept}
    if layout.expert_tp != layout.tp:
        found["expert_tensor_parallel_size"] = layout.expert_tp
    if layout.cp > 1 and layout.cp_comm_type != plain.cp_comm_type:
        found["cp_comm_type"] = layout.cp_comm_type
        if layout.hierarchical_cp:
            found["hierarchical_context_parallel_sizes"] = list(layout.hierarchical_cp)
    if layout.stages:
        found["pipeline_model_parallel_layout"] = text_of(layout.stages)
    alone = layout.tp * layout.pp
    if layout.overlap.grad_reduce != (layout.world_size > alone):
        found["overlap_grad_reduce"] = layout.overlap.grad_reduce
    if layout.overlap.p2p != (layout.vpp > 1):
        found["overlap_p2p_comm"] = layout.overlap.p2p
    return found
