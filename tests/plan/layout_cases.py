"""What the cases of layouts are made of; they are in the files named after their rules' modules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from toolkit.megatron.config import PretrainConfig
from toolkit.plan.describe import run_of
from toolkit.plan.machine import capability_of
from toolkit.plan.shape import Machine, Run

BASE: dict[str, Any] = {
    "data": "corpus",
    "train_iters": 100,
    "micro_batch_size": 1,
    "global_batch_size": 8,
    "model": {
        "num_layers": 8,
        "hidden_size": 64,
        "num_attention_heads": 8,
        "num_query_groups": 4,
        "ffn_hidden_size": 128,
        "max_position_embeddings": 64,
    },
}
Settings = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One rule's boundary, seen from both sides."""

    rule: str
    key: str
    says: str
    """A part of the message."""
    wrong: Settings
    """Dotted settings: ``{"parallel.tensor_model_parallel_size": 3}``."""
    right: Settings
    """Laid over ``wrong``, they repair it; None takes a setting back."""
    ranks: int = 8
    right_ranks: int | None = None
    machine: Machine = field(default=Machine())
    right_machine: Machine | None = None
    megatron: str | None = None
    """What megatron-core says when it builds its configuration from the same settings."""
    groups: str | None = None
    """What megatron-core says when it makes its process groups for them."""

    def __str__(self) -> str:
        return f"{self.rule}: {self.says[:40]}"

    @property
    def wrong_config(self) -> PretrainConfig:
        return config(self.wrong)

    @property
    def right_config(self) -> PretrainConfig:
        return config({**self.wrong, **self.right})

    @property
    def wrong_run(self) -> Run:
        return run_of(self.wrong_config, self.ranks, machine=self.machine)

    @property
    def right_run(self) -> Run:
        machine = self.machine if self.right_machine is None else self.right_machine
        return run_of(self.right_config, self.right_ranks or self.ranks, machine=machine)


def settings(changes: Mapping[str, Any]) -> Settings:
    """The base with dotted settings laid over it."""
    whole: Settings = {**BASE, "model": dict(BASE["model"]), "parallel": {}}
    for name, value in changes.items():
        place, _, last = name.rpartition(".")
        holder = whole[place] if place else whole
        holder.pop(last, None)
        if value is not None:
            holder[last] = value
    return whole


def config(changes: Mapping[str, Any]) -> PretrainConfig:
    return PretrainConfig.model_validate(settings(changes))


def gpu(kind: str, **known: Any) -> Machine:
    return Machine(gpu=kind, capability=capability_of(kind), gpus_per_node=8, **known)


TP = "parallel.tensor_model_parallel_size"
PP = "parallel.pipeline_model_parallel_size"
VPP = "parallel.virtual_pipeline_model_parallel_size"
CP = "parallel.context_parallel_size"
EP = "parallel.expert_model_parallel_size"
ETP = "parallel.expert_tensor_parallel_size"
SP = "parallel.sequence_parallel"
FIRST = "parallel.num_layers_in_first_pipeline_stage"
LAST = "parallel.num_layers_in_last_pipeline_stage"
GROUP = "parallel.microbatch_group_size_per_vp_stage"
LAYOUT = "parallel.pipeline_model_parallel_layout"
INSTANCES = "parallel.num_distributed_optimizer_instances"
EXPERTS = "model.num_moe_experts"
DISPATCHER = "parallel.moe_token_dispatcher_type"
EP_OVERLAP = "parallel.overlap_moe_expert_parallel_comm"
FULL = {
    "recompute_granularity": "full",
    "recompute_method": "block",
    "recompute_num_layers": 1,
}
WIDE = {"model.hidden_size": 256, "model.num_attention_heads": 8, "model.ffn_hidden_size": 512}
