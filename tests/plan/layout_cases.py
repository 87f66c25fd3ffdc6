"""Configurations on both sides of every rule's boundary: each wrong one, and the same one repaired.

Those of FSDP are in ``fsdp_cases``.
"""

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

RANKS = [
    Case("ranks-hold-whole-copies", "parallel",
         "6 ranks are not a multiple of the 4 that hold one copy of the model (tensor 2 x pipeline"
         " 2 x context 1); the nearest are 4 or 8 ranks",
         {TP: 2, PP: 2}, {}, ranks=6, right_ranks=8,
         groups="world_size .6. is not divisible by 4"),
    Case("ranks-hold-whole-copies", "parallel", "(tensor 1 x pipeline 1 x context 4)",
         {CP: 4, "global_batch_size": 6}, {}, ranks=6, right_ranks=8,
         groups="world_size .6. is not divisible by 4"),
    Case("ranks-hold-whole-sets-of-experts", EP,
         "4 ranks are not a multiple of the 8 that hold all experts (expert tensor 1 x expert 8",
         {EXPERTS: 8, EP: 8}, {EP: 4}, ranks=4,
         groups="world_size .4. is not divisible by expert_tensor_model_pipeline"),
    Case("ranks-hold-whole-sets-of-experts", EP, "expert tensor 4 x expert 2 x pipeline 1",
         {EXPERTS: 8, EP: 2, ETP: 4}, {ETP: 2}, ranks=4,
         groups="world_size .4. is not divisible by expert_tensor_model_pipeline"),
    Case("optimizer-instances-divide-the-copies", INSTANCES,
         "3 does not divide the 8 ranks that share the optimizer's state (data 8 x context 1);"
         " the nearest are 2 or 4",
         {INSTANCES: 3}, {INSTANCES: 4}, groups="Data parallel size should be divisible"),
    Case("optimizer-instances-divide-the-copies-of-experts", INSTANCES,
         "4 does not divide the 2 copies of each expert",
         {EXPERTS: 4, EP: 4, INSTANCES: 4}, {INSTANCES: 2},
         groups="Expert data parallel size should be divisible"),
    Case("batch-divides", "global_batch_size",
         "12 is not a multiple of 8 (micro_batch_size 1 x data_parallel_size 8);"
         " the nearest are 8 or 16",
         {"global_batch_size": 12}, {"global_batch_size": 16}),
    Case("batch-divides", "global_batch_size",
         "4 is not a multiple of 8 (micro_batch_size 1 x data_parallel_size 8); the nearest is 8",
         {"global_batch_size": 4}, {"global_batch_size": 8}),
    Case("batch-divides", "global_batch_size", "9 is not a multiple of 6 (micro_batch_size 6",
         {"global_batch_size": 9, "micro_batch_size": 6}, {"global_batch_size": 12}, ranks=1),
]  # fmt: skip

MATRICES = [
    Case("heads-divide-the-hidden-size", "model.hidden_size",
         "68 is not a multiple of num_attention_heads 8; the nearest are 64 or 80",
         {"model.hidden_size": 68}, {"model.kv_channels": 8}),
    Case("query-groups-divide-the-heads", "model.num_query_groups",
         "3 does not divide num_attention_heads 8; the nearest are 2 or 4",
         {"model.num_query_groups": 3}, {"model.num_query_groups": 2}),
    Case("rotary-positions-turn-pairs", "model.kv_channels",
         "rotary positions turn pairs of channels, and 9 is odd; the nearest are 8 or 10",
         {"model.kv_channels": 9}, {"model.kv_channels": 10}),
    Case("rotary-positions-turn-pairs", "model.rotary_percent",
         "0.1 of kv_channels 8 is less than one, and the model would know no positions; the nearest"
         " is 0.125", {"model.rotary_percent": 0.1}, {"model.rotary_percent": 0.13}),
    Case("positions-reach-the-end", "seq_length",
         "128 is longer than the model's max_position_embeddings 64",
         {"seq_length": 128}, {"seq_length": 64}),
    Case("tensor-parallel-divides-the-heads", TP,
         "3 does not divide num_attention_heads 8; the nearest are 2 or 4",
         {TP: 3, "model.num_query_groups": 1, "model.ffn_hidden_size": 96, "global_batch_size": 6},
         {TP: 2}, ranks=6, right_ranks=4, megatron="num_attention_heads .8. must be a multiple"),
    Case("tensor-parallel-fits-the-query-groups", TP,
         "4 and num_query_groups 6 must be multiples one of the other; the nearest is 2",
         {TP: 4, "model.num_attention_heads": 12, "model.num_query_groups": 6,
          "model.hidden_size": 96}, {TP: 2}, megatron="num_query_groups .6. must be a multiple"),
    Case("tensor-parallel-divides-the-qkv-projection", TP,
         "8 does not divide the 20 rows of the QKV projection ((8 heads + 2 x 1 groups)"
         " x kv_channels 2); the nearest is 4",
         {TP: 8, "model.num_query_groups": 1, "model.kv_channels": 2}, {"model.kv_channels": 4}),
    Case("tensor-parallel-divides-the-mlp", TP,
         "4 does not divide ffn_hidden_size 130; the nearest is 2",
         {TP: 4, "model.ffn_hidden_size": 130}, {"model.ffn_hidden_size": 132}),
]  # fmt: skip

PIPELINE = [
    Case("interleaving-needs-a-pipeline", VPP, "2 parts interleave",
         {VPP: 2}, {PP: 2}, groups="should be greater than 1 with interleaved schedule"),
    Case("pipeline-divides-the-layers", PP,
         "3 does not divide num_layers 8; the nearest are 2 or 4; 3 divides 9 with"
         " account_for_embedding_in_pipeline_split: true",
         {PP: 3}, {"model.num_layers": 9}, ranks=3),
    Case("pipeline-divides-the-layers", PP,
         "4 does not divide num_layers 8 + 1 for the embedding + 1 for the loss = 10;"
         " the nearest are 2 or 5",
         {PP: 4, "parallel.account_for_embedding_in_pipeline_split": True,
          "parallel.account_for_loss_in_pipeline_split": True},
         {"model.num_layers": 10}, megatron="number of middle layers: 10 must be divisible"),
    Case("interleaving-divides-the-layers-of-a-rank", VPP,
         "3 does not divide the 4 layers of a pipeline rank (num_layers 8, /"
         " pipeline_model_parallel_size 2); the nearest are 2 or 4",
         {PP: 2, VPP: 3}, {VPP: 4}, ranks=2),
    Case("interleaving-divides-the-layers-of-a-rank", VPP,
         "2 does not divide the 5 layers of a pipeline rank (num_layers 9 + 1 for the loss",
         {PP: 2, VPP: 2, "model.num_layers": 9,
          "parallel.account_for_loss_in_pipeline_split": True},
         {VPP: 5}, ranks=2, megatron="num_layers_per_pipeline_rank|on each pipeline rank"),
    Case("uneven-stages-stand-alone", FIRST, "use one of the two ways",
         {PP: 4, FIRST: 2, "parallel.account_for_loss_in_pipeline_split": True},
         {"parallel.account_for_loss_in_pipeline_split": None},
         megatron="cannot beset at the same time"),
    Case("uneven-stages-leave-layers-to-the-middle", FIRST,
         "5 of num_layers 8 are left beside the 3 at the ends, and 3 ranks between"
         " (pipeline_model_parallel_size 4) can't share them evenly; the nearest are 2 or 5",
         {PP: 4, FIRST: 3}, {FIRST: 2}, megatron="number of layers at middle stage: 5"),
    Case("uneven-stages-leave-layers-to-the-middle", FIRST,  # 2 and 4 are no multiples of VPP
         "can't share them evenly; the nearest is 6",
         {PP: 3, VPP: 3, FIRST: 3, "model.num_layers": 18, "global_batch_size": 9}, {FIRST: 6},
         ranks=3),
    Case("uneven-stages-leave-layers-to-the-middle", FIRST,
         "0 of num_layers 8 are left beside the 8 at the ends, for 2 ranks between",
         {PP: 4, FIRST: 4, LAST: 4}, {FIRST: 3, LAST: 3},
         megatron="Mismatch: 0 middle layers remaining but 2"),
    Case("uneven-stages-leave-layers-to-the-middle", LAST, "-1 of num_layers 8",
         {PP: 2, LAST: 9}, {LAST: 3}),
    Case("interleaving-divides-uneven-stages", FIRST,
         "3 is not a multiple of the 2 parts of a rank; the nearest are 2 or 4",
         {PP: 2, VPP: 2, FIRST: 3, "model.num_layers": 7}, {FIRST: 2, "model.num_layers": 6},
         ranks=2, megatron="number of layers at first stage: 3"),
    Case("interleaving-divides-uneven-stages", LAST, "5 is not a multiple of the 2 parts",
         {PP: 2, VPP: 2, LAST: 5, "model.num_layers": 9}, {LAST: 4, "model.num_layers": 8},
         ranks=2, megatron="number of layers at last stage: 5"),
    Case("interleaving-divides-uneven-stages", VPP,
         "2 does not divide the 3 layers of a rank between the ends (3 / 1); the nearest are 1 or"
         " 3",
         {PP: 2, VPP: 2, FIRST: 2, "model.num_layers": 5}, {"model.num_layers": 6}, ranks=2,
         megatron="number of layers on each middle pipeline rank:3"),
    Case("interleaving-has-microbatches-in-groups", "global_batch_size",
         "2 makes 2 microbatches (/ micro_batch_size 1 / data_parallel_size 1), and the interleaved"
         " schedule takes groups of 4; the nearest is 4",
         {PP: 4, VPP: 2, "global_batch_size": 2}, {"global_batch_size": 4}, ranks=4),
    Case("interleaving-has-microbatches-in-groups", "global_batch_size",
         "5 makes 5 microbatches, 1 more than whole groups of 4, which is below"
         " pipeline_model_parallel_size 4; the nearest are 4 or 8",
         {PP: 4, VPP: 2, "global_batch_size": 5}, {"global_batch_size": 8}, ranks=4),
    Case("interleaving-has-microbatches-in-groups", GROUP,
         "2 is below pipeline_model_parallel_size 4; the nearest is 4",
         {PP: 4, VPP: 2, GROUP: 2}, {GROUP: 4}, ranks=4),
    Case("microbatch-groups-need-interleaving", GROUP, "4 groups the microbatches",
         {PP: 4, GROUP: 4}, {VPP: 2}, ranks=4),
    Case("overlapped-sends-need-interleaving", "parallel.overlap_p2p_comm",
         "only the interleaved schedule",
         {PP: 2, "parallel.overlap_p2p_comm": True}, {VPP: 2}, ranks=2),
]  # fmt: skip

LAYOUTS = [
    Case("pipeline-layout-can-be-read", LAYOUT,
         "'x' at position 7 of 'Et*3|tx|L': the letters are E (embedding), t (decoder layer) and L",
         {PP: 2, LAYOUT: "Et*3|tx|L"}, {LAYOUT: "Et*3|t*5,L"}, ranks=2,
         megatron="Invalid layer character: x"),
    Case("pipeline-layout-can-be-read", LAYOUT, "'(' at position 1 of '(Et*4|t*4,L)': parentheses",
         {PP: 2, LAYOUT: "(Et*4|t*4,L)"}, {LAYOUT: "E(tt)*2|t*4,L"}, ranks=2,
         megatron="Invalid layer character"),
    Case("pipeline-layout-can-be-read", LAYOUT, "'*' at position 3 of 'Et*|t*7,L': a number must",
         {PP: 2, LAYOUT: "Et*|t*7,L"}, {LAYOUT: "Et|t*7,L"}, ranks=2,
         megatron="Invalid layer character"),
    Case("pipeline-layout-can-be-read", LAYOUT, "'decode', layer 2 of stage 0, is neither",
         {PP: 2, "model.num_layers": 2, LAYOUT: [["embedding", "decode"], ["decoder", "loss"]]},
         {LAYOUT: [["embedding", "decoder"], ["decoder", "loss"]]}, ranks=2,
         megatron="decode is not a valid LayerType"),
    Case("pipeline-layout-can-be-read", LAYOUT, "unrolls to more than 100,000",
         {PP: 2, LAYOUT: "Et*4|t*4000000,L"}, {LAYOUT: "Et*4|t*4,L"}, ranks=2),
    Case("pipeline-layout-stands-alone", LAYOUT,
         "num_layers_in_first_pipeline_stage and account_for_loss_in_pipeline_split say it, too",
         {PP: 2, LAYOUT: "Et*3|t*5,L", FIRST: 3,
          "parallel.account_for_loss_in_pipeline_split": True},
         {FIRST: None, "parallel.account_for_loss_in_pipeline_split": None}, ranks=2,
         megatron="cannot beset at the same time"),
    Case("pipeline-layout-stands-alone", LAYOUT, "account_for_loss_in_pipeline_split says it, too",
         {PP: 2, LAYOUT: "Et*4|t*4,L", "parallel.account_for_loss_in_pipeline_split": True},
         {"parallel.account_for_loss_in_pipeline_split": None}, ranks=2,
         megatron="cannot be set with other pipeline layout arguments"),
    Case("pipeline-ranks-divide-the-stages", PP,
         "2 does not divide the 3 stages of pipeline_model_parallel_layout; the nearest are 1 or 3",
         {PP: 2, LAYOUT: "Et*4|tt|tt,L"}, {LAYOUT: "Et*4|tt|t|t,L"}, ranks=2,
         megatron="layout must be divisible"),
    Case("interleaving-needs-a-pipeline", PP, "1 rank can't take the 2 stages",
         {LAYOUT: "Et*4|t*4,L"}, {PP: 2}),
    Case("interleaving-agrees-with-the-stages", VPP,
         "3 parts x pipeline_model_parallel_size 2 = 6 stages, and pipeline_model_parallel_layout"
         " has 4; set 2, or leave this out",
         {PP: 2, VPP: 3, LAYOUT: "Et*3|tt|t|tt,L"}, {VPP: 2}, ranks=2,
         megatron="virtual_pipeline_model_parallel_size conflicts"),
    Case("interleaving-agrees-with-the-stages", VPP, "1 parts x pipeline_model_parallel_size 2",
         {PP: 2, VPP: 1, LAYOUT: "Et*3|tt|t|tt,L"}, {VPP: None}, ranks=2,
         megatron="virtual_pipeline_model_parallel_size conflicts"),
    Case("first-stage-has-the-embedding", LAYOUT,
         "E must come once, at the beginning of stage 0; it comes in stage 1",
         {PP: 2, LAYOUT: "t*4|Et*4,L"}, {LAYOUT: "Et*4|t*4,L"}, ranks=2,
         megatron="The first layer must be embedding"),
    Case("first-stage-has-the-embedding", LAYOUT, "it comes 2 times, in stages 0 and 1",
         {PP: 2, LAYOUT: "Et*4|Et*4,L"}, {LAYOUT: "E|t*4|t*4|L"}, ranks=2,
         megatron="Embedding must be specified exactly once"),
    Case("last-stage-has-the-loss", LAYOUT,
         "L must come once, at the end of stage 1; it is missing",
         {PP: 2, LAYOUT: "Et*4|t*4"}, {LAYOUT: "Et*4|t*4,L"}, ranks=2,
         megatron="The last layer must be loss"),
    Case("last-stage-has-the-loss", LAYOUT, "it stands elsewhere in stage 1",
         {PP: 2, LAYOUT: "Et*4|ttLtt"}, {LAYOUT: "Et*4|tt|tt|L"}, ranks=2,
         megatron="The last layer must be loss"),
    Case("pipeline-layout-has-all-layers", LAYOUT,
         "has 7 decoder layers (t), and num_layers is 8; add 1",
         {PP: 2, LAYOUT: "Et*3|t*4,L"}, {LAYOUT: "Et*3|t*5,L"}, ranks=2,
         megatron="Number of decoder layers 7must match num_layers 8"),
    Case("pipeline-layout-has-all-layers", LAYOUT, "take out 2",
         {PP: 2, LAYOUT: "E(tt)*3|t*4,L"}, {"model.num_layers": 10}, ranks=2,
         megatron="Number of decoder layers 10must match num_layers 8"),
    Case("pipeline-layout-has-no-multi-token-prediction", LAYOUT, "m stands for multi-token",
         {PP: 2, LAYOUT: "Et*4|t*4,m,L"}, {LAYOUT: "Et*4|t*4,L"}, ranks=2,
         megatron="Number of mtp layers"),
    Case("every-rank-has-weights", LAYOUT, "leaves pipeline rank 1 without a layer",
         {PP: 3, LAYOUT: "Et*4||t*4,L"}, {LAYOUT: "Et*4|t|t*3,L"}, ranks=3),
    Case("recomputed-layers-are-there", "recompute_num_layers",
         "6 is more than the 5 layers that a rank holds of the pipeline (they have 3 and 5); 1 to"
         " 5",
         {PP: 2, LAYOUT: "Et*3|t|tt|tt,L", **FULL, "recompute_num_layers": 6},
         {"recompute_num_layers": 3}, ranks=2),
    Case("recomputed-layers-are-there", "recompute_num_layers",
         "uniform cuts the 2 and 4 layers of a part of the pipeline into chunks of 4",
         {PP: 2, LAYOUT: "Et*4|tt|tt|L", **FULL, "recompute_method": "uniform",
          "recompute_num_layers": 4}, {"recompute_num_layers": 2}, ranks=2),
]  # fmt: skip

SEQUENCE = [
    Case("context-parallel-divides-the-sequence", CP,
         "seq_length 60 is not a multiple of 8 (2 pieces x context_parallel_size 4); the nearest"
         " values of seq_length are 56 or 64",
         {CP: 4, "seq_length": 60}, {"seq_length": 56}),
    Case("sequence-parallel-needs-tensor-parallel", SP, "tensor_model_parallel_size is 1",
         {SP: True}, {TP: 2}, megatron="Cannot use sequence parallelism without tensor"),
    Case("sequence-parallel-divides-the-sequence", SP,
         "the 62 tokens of a rank (seq_length 62 / context_parallel_size 1) are not a multiple of"
         " tensor_model_parallel_size 4; the nearest values of seq_length are 60 or 64",
         {TP: 4, SP: True, "seq_length": 62}, {"seq_length": 60}),
    Case("sequence-parallel-divides-the-sequence", SP, "the 14 tokens of a rank",
         {TP: 4, CP: 2, SP: True, "seq_length": 28}, {"seq_length": 32}),
    Case("all-to-all-divides-the-heads", "parallel.cp_comm_type",
         "a2a deals a rank's 8 heads and 4 query groups (of 8 and 4, / tensor 1) out to 8 ranks;"
         " the nearest value of context_parallel_size is 4, or take cp_comm_type p2p",
         {CP: 8, "parallel.cp_comm_type": "a2a"}, {"parallel.cp_comm_type": "p2p"}),
    Case("all-to-all-divides-the-heads", "parallel.cp_comm_type",
         "a2a+p2p deals a rank's 4 heads and 2 query groups (of 8 and 4, / tensor 2) out to 4"
         " ranks; [2, 4] would do",
         {CP: 8, TP: 2, "parallel.cp_comm_type": "a2a+p2p",
          "parallel.hierarchical_context_parallel_sizes": [4, 2]},
         {"parallel.hierarchical_context_parallel_sizes": [2, 4]}, ranks=16),
    Case("hierarchy-multiplies-to-context-parallel",
         "parallel.hierarchical_context_parallel_sizes",
         "2 x 2 = 4, and context_parallel_size is 8; [2, 4] would do",
         {CP: 8, "parallel.cp_comm_type": "a2a+p2p",
          "parallel.hierarchical_context_parallel_sizes": [2, 2]},
         {"parallel.hierarchical_context_parallel_sizes": [2, 4]}),
    Case("hierarchy-multiplies-to-context-parallel", "parallel.cp_comm_type",
         "needs two hierarchical_context_parallel_sizes, an inner and an outer one; [2, 4] would",
         {CP: 8, "parallel.cp_comm_type": "a2a+p2p"}, {"parallel.cp_comm_type": "p2p"}),
    Case("hierarchy-multiplies-to-context-parallel", "parallel.cp_comm_type",
         "is for context_parallel_size 2 or more", {"parallel.cp_comm_type": "a2a+p2p"},
         {"parallel.cp_comm_type": "p2p"}),
    Case("hierarchy-multiplies-to-context-parallel",
         "parallel.hierarchical_context_parallel_sizes",
         "4 x 3 = 12, and context_parallel_size is 6; [2, 3] would do",
         {CP: 6, "seq_length": 48, "parallel.cp_comm_type": "a2a+p2p",
          "parallel.hierarchical_context_parallel_sizes": [4, 3]},
         {"parallel.hierarchical_context_parallel_sizes": [2, 3]}, ranks=6),
    Case("hierarchy-multiplies-to-context-parallel",
         "parallel.hierarchical_context_parallel_sizes", "is for cp_comm_type a2a+p2p",
         {CP: 8, "parallel.hierarchical_context_parallel_sizes": [2, 4]},
         {"parallel.cp_comm_type": "a2a+p2p"}),
]  # fmt: skip

ROUTING = [
    Case("expert-parallel-needs-experts", EP, "the model has none",
         {EP: 2}, {EXPERTS: 4}, megatron="num_moe_experts must be non None"),
    Case("expert-parallel-needs-experts", "model.moe_ffn_hidden_size", "is a size of experts",
         {"model.moe_ffn_hidden_size": 32}, {EXPERTS: 4}),
    Case("expert-parallel-needs-experts", ETP, "cuts experts, and the model has none",
         {ETP: 2}, {EXPERTS: 4, EP: 2}),
    Case("expert-parallel-divides-the-experts", EP,
         "4 does not divide num_moe_experts 6; the nearest are 3 or 6",
         {EXPERTS: 6, EP: 4}, {EXPERTS: 8}),
    Case("expert-tensor-parallel-divides-an-expert", ETP,
         "4 does not divide moe_ffn_hidden_size 30; the nearest are 3 or 5",
         {EXPERTS: 4, EP: 2, ETP: 4, "model.moe_ffn_hidden_size": 30},
         {"model.moe_ffn_hidden_size": 32}),
    Case("tensor-parallel-divides-the-shared-experts",
         "model.moe_shared_expert_intermediate_size",
         "33 is not a multiple of tensor_model_parallel_size 2; the nearest are 32 or 34",
         {EXPERTS: 4, TP: 2, SP: True, "model.moe_shared_expert_intermediate_size": 33},
         {"model.moe_shared_expert_intermediate_size": 34}),
    Case("experts-with-tensor-parallel-need-sequence-parallel", SP, "must be on",
         {EXPERTS: 4, TP: 2}, {SP: True}),
    Case("experts-cut-otherwise-need-expert-parallel", ETP, "megatron-core below 0.19",
         {EXPERTS: 4, TP: 2, SP: True, ETP: 1}, {}, machine=Machine(megatron_core="0.18.1"),
         right_machine=Machine(megatron_core="0.19.2")),
    Case("experts-cut-otherwise-need-expert-parallel", ETP, "1 is not tensor_model_parallel_size 2",
         {EXPERTS: 4, TP: 2, SP: True, ETP: 1}, {EP: 2}),
    Case("experts-cut-otherwise-need-expert-parallel", ETP, "this to 2",
         {EXPERTS: 4, TP: 2, SP: True, ETP: 1}, {ETP: 2}),
    Case("biases-need-whole-experts", ETP, "2 cuts experts that have biases",
         {EXPERTS: 4, TP: 2, EP: 2, SP: True, "model.add_bias_linear": True}, {ETP: 1},
         megatron="Bias in Moe is only supported when ETP==1"),
    Case("shared-experts-have-no-biases", "model.add_bias_linear", "set this to false",
         {EXPERTS: 4, "model.add_bias_linear": True,
          "model.moe_shared_expert_intermediate_size": 32}, {"model.add_bias_linear": False}),
    Case("tokens-go-to-experts-that-there-are", "model.moe_router_topk",
         "5 is more than the 4 experts", {EXPERTS: 4, "model.moe_router_topk": 5},
         {"model.moe_router_topk": 4}),
    Case("one-expert-needs-the-softmax-first", "model.moe_router_topk", "learns nothing",
         {EXPERTS: 4, "model.moe_router_topk": 1}, {"model.moe_router_pre_softmax": True},
         megatron="Please use --moe-router-pre-softmax when topk is 1"),
    Case("groups-divide-the-experts", "model.moe_router_num_groups",
         "3 does not divide num_moe_experts 8; the nearest are 2 or 4",
         {EXPERTS: 8, "model.moe_router_num_groups": 3, "model.moe_router_group_topk": 2},
         {"model.moe_router_num_groups": 4}, megatron="num_moe_experts .8. should be divisible by"),
    Case("groups-divide-the-experts", "model.moe_router_group_topk",
         "3 is more than moe_router_num_groups 2",
         {EXPERTS: 8, "model.moe_router_num_groups": 2, "model.moe_router_group_topk": 3,
          "model.moe_router_topk": 3}, {"model.moe_router_group_topk": 1},
         megatron="moe_router_group_topk .3. should be smaller"),
    Case("groups-divide-the-experts", "model.moe_router_group_topk",
         "needs moe_router_num_groups, too",
         {EXPERTS: 8, "model.moe_router_group_topk": 2}, {"model.moe_router_num_groups": 4},
         megatron="moe_router_num_groups must be specified"),
    Case("chosen-groups-share-the-choice", "model.moe_router_topk",
         "3 experts come from 2 groups (moe_router_group_topk) of 2 experts, as many from each;"
         " the nearest are 2 or 4",
         {EXPERTS: 8, "model.moe_router_num_groups": 4, "model.moe_router_group_topk": 2,
          "model.moe_router_topk": 3}, {"model.moe_router_topk": 4}),
    Case("expert-bias-needs-sigmoid", "model.moe_router_enable_expert_bias",
         "goes with moe_router_score_function sigmoid, not softmax",
         {EXPERTS: 4, "model.moe_router_enable_expert_bias": True},
         {"model.moe_router_score_function": "sigmoid"}, megatron="only supports .*sigmoid"),
    Case("capacity-needs-a-choice-by-score", "model.moe_expert_capacity_factor",
         "not sinkhorn",
         {EXPERTS: 4, "model.moe_expert_capacity_factor": 1.0,
          "model.moe_router_load_balancing_type": "sinkhorn"},
         {"model.moe_router_load_balancing_type": "aux_loss"},
         megatron="moe_expert_capacity_factor only works with"),
    Case("capacity-needs-a-choice-by-score", "model.moe_pad_expert_input_to_capacity",
         "which is not set",
         {EXPERTS: 4, "model.moe_pad_expert_input_to_capacity": True},
         {"model.moe_expert_capacity_factor": 1.0},
         megatron="moe_expert_capacity_factor must be set"),
    Case("sinkhorn-has-no-loss", "model.moe_aux_loss_coeff", "0.01 weighs a loss",
         {EXPERTS: 4, "model.moe_aux_loss_coeff": 0.01,
          "model.moe_router_load_balancing_type": "sinkhorn"}, {"model.moe_aux_loss_coeff": 0.0}),
    Case("layer-pattern-has-every-layer", "model.moe_layer_freq", "has 3 entries for num_layers 8",
         {EXPERTS: 4, "model.moe_layer_freq": [0, 1, 1]},
         {"model.moe_layer_freq": [0, 1, 1, 1, 1, 1, 1, 1]}),
]  # fmt: skip

DISPATCH = [
    Case("flex-needs-ranks", DISPATCHER, "expert tensor 1 x expert 1",
         {EXPERTS: 4, DISPATCHER: "flex"}, {EP: 2}),
    Case("flex-does-not-pad", DISPATCHER, "take alltoall",
         {EXPERTS: 4, EP: 2, DISPATCHER: "flex", "model.moe_expert_capacity_factor": 1.0,
          "model.moe_pad_expert_input_to_capacity": True}, {DISPATCHER: "alltoall"}),
    Case("shared-experts-overlap-with-all-to-all", "parallel.moe_shared_expert_overlap",
         "there are no shared experts",
         {EXPERTS: 4, EP: 2, "parallel.moe_shared_expert_overlap": True},
         {"model.moe_shared_expert_intermediate_size": 32}),
    Case("shared-experts-overlap-with-all-to-all", "parallel.moe_shared_expert_overlap",
         "not allgather",
         {EXPERTS: 4, EP: 2, "parallel.moe_shared_expert_overlap": True,
          "model.moe_shared_expert_intermediate_size": 32, DISPATCHER: "allgather"},
         {DISPATCHER: "alltoall"}),
    Case("shared-experts-overlap-with-all-to-all", "parallel.moe_shared_expert_overlap",
         "not flex",
         {EXPERTS: 4, EP: 2, "parallel.moe_shared_expert_overlap": True,
          "model.moe_shared_expert_intermediate_size": 32, DISPATCHER: "flex"}, {},
         machine=Machine(megatron_core="0.18.1"), right_machine=Machine(megatron_core="0.19.2")),
    Case("overlapped-dispatch-needs-expert-parallel", EP_OVERLAP, "set 2 or more",
         {EXPERTS: 4, EP_OVERLAP: True}, {EP: 2}),
    Case("overlapped-dispatch-needs-expert-parallel", EP_OVERLAP, "not allgather",
         {EXPERTS: 4, EP: 2, EP_OVERLAP: True, DISPATCHER: "allgather"}, {DISPATCHER: "alltoall"}),
    Case("overlapped-dispatch-needs-interleaving", EP_OVERLAP, "in a pipeline of 2",
         {EXPERTS: 4, EP: 2, PP: 2, EP_OVERLAP: True}, {VPP: 2}),
    Case("overlapped-dispatch-keeps-its-activations", EP_OVERLAP, "recompute_granularity full",
         {EXPERTS: 4, EP: 2, EP_OVERLAP: True, **FULL},
         dict.fromkeys(FULL)),
    Case("overlapped-dispatch-keeps-its-activations", EP_OVERLAP, "recompute_modules moe;",
         {EXPERTS: 4, EP: 2, EP_OVERLAP: True, "recompute_granularity": "selective",
          "recompute_modules": ["moe"]}, {"recompute_modules": ["layernorm"]}),
    Case("overlapped-dispatch-keeps-its-activations", EP_OVERLAP, "one of the two",
         {EXPERTS: 4, EP: 2, EP_OVERLAP: True, "parallel.moe_shared_expert_overlap": True,
          "model.moe_shared_expert_intermediate_size": 32},
         {"parallel.moe_shared_expert_overlap": False}),
    Case("overlapped-dispatch-is-16-bit", EP_OVERLAP, "not fp32",
         {EXPERTS: 4, EP: 2, EP_OVERLAP: True, "precision": "fp32"}, {"precision": "bf16"}),
    Case("delayed-gradients-fill-an-overlap", "parallel.delay_wgrad_compute", "which is off",
         {EXPERTS: 4, EP: 2, "parallel.delay_wgrad_compute": True}, {EP_OVERLAP: True},
         megatron="overlap_moe_expert_parallel_comm must be enabled"),
]  # fmt: skip

MEMORY = [
    Case("full-recompute-says-which-layers", "recompute_granularity",
         "full needs recompute_method, too: uniform or block",
         {"recompute_granularity": "full", "recompute_num_layers": 1},
         {"recompute_method": "uniform"}, megatron="recompute_method must be"),
    Case("full-recompute-says-which-layers", "recompute_granularity",
         "full needs recompute_num_layers, too",
         {"recompute_granularity": "full", "recompute_method": "uniform"},
         {"recompute_num_layers": 1}, megatron="recompute_num_layers must be between"),
    Case("full-recompute-says-which-layers", "recompute_num_layers", "and that is selective",
         {"recompute_granularity": "selective", "recompute_num_layers": 1},
         {"recompute_num_layers": None}, megatron="recompute_num_layers must be None"),
    Case("full-recompute-says-which-layers", "recompute_method", "and that is not set",
         {"recompute_method": "block"}, {**FULL}),
    Case("recomputed-layers-are-there", "recompute_num_layers",
         "3 is more than the 2 layers that a rank holds of the pipeline (num_layers 8 / pipeline"
         " 4); 1 to 2", {PP: 4, **FULL, "recompute_num_layers": 3}, {"recompute_num_layers": 2}),
    Case("recomputed-layers-are-there", "recompute_num_layers",
         "5 is more than the 4 layers that a rank holds of the pipeline",
         {PP: 2, VPP: 2, **FULL, "recompute_num_layers": 5}, {"recompute_num_layers": 3}),
    Case("recomputed-layers-are-there", "recompute_num_layers",
         "4 is more than the 2 layers that a rank holds in one part of the pipeline (num_layers 8"
         " / pipeline 2 / parts 2); the nearest is 2",
         {PP: 2, VPP: 2, **FULL, "recompute_method": "uniform", "recompute_num_layers": 4},
         {"recompute_num_layers": 2}),
    Case("recomputed-layers-are-there", "recompute_num_layers",
         "uniform cuts the 8 layers of a part of the pipeline into chunks of 3, and they don't"
         " divide; the nearest are 2 or 4",
         {**FULL, "recompute_method": "uniform", "recompute_num_layers": 3},
         {"recompute_num_layers": 4}),
    Case("recomputed-layers-are-there", "recompute_num_layers", "chunks of 3",
         {**FULL, "recompute_method": "uniform", "recompute_num_layers": 3}, {},
         machine=Machine(megatron_core="0.18.0"), right_machine=Machine(megatron_core="0.19.0")),
    Case("saved-activations-are-shared-by-tensor-ranks", "distribute_saved_activations",
         "tensor_model_parallel_size is 1",
         {**FULL, "distribute_saved_activations": True}, {TP: 2}),
    Case("saved-activations-are-shared-by-tensor-ranks", "distribute_saved_activations",
         "is for recompute_granularity full",
         {TP: 2, "distribute_saved_activations": True}, {**FULL}),
    Case("saved-activations-are-shared-by-tensor-ranks", "distribute_saved_activations",
         "what sequence_parallel does already",
         {TP: 2, SP: True, **FULL, "distribute_saved_activations": True}, {SP: False},
         megatron="must be false when sequence parallel is enabled"),
    Case("selective-recompute-names-modules", "recompute_modules", "and that is not set",
         {"recompute_modules": ["mlp"]}, {"recompute_granularity": "selective"}),
    Case("recomputed-modules-are-there", "recompute_modules", "moe is a part of experts",
         {"recompute_granularity": "selective", "recompute_modules": ["moe"]}, {EXPERTS: 4}),
    Case("recomputed-modules-are-there", "recompute_modules", "moe_grouped_gemm: true",
         {EXPERTS: 4, "recompute_granularity": "selective", "recompute_modules": ["moe_act"]},
         {"parallel.moe_grouped_gemm": True},
         megatron="moe_act in recompute_modules is only supported with moe_grouped_gemm"),
    Case("recomputed-modules-are-there", "recompute_modules", "moe_shared_expert_overlap",
         {EXPERTS: 4, EP: 2, "recompute_granularity": "selective",
          "recompute_modules": ["shared_experts"], "parallel.moe_shared_expert_overlap": True,
          "model.moe_shared_expert_intermediate_size": 32},
         {"parallel.moe_shared_expert_overlap": False}),
    Case("delayed-scaling-keeps-its-inputs", "recompute_modules", "take tensorwise",
         {"fp8": "hybrid", "recompute_granularity": "selective",
          "recompute_modules": ["layernorm"]}, {"fp8_recipe": "tensorwise"}),
    Case("gathered-parameters-are-sharded", "parallel.overlap_param_gather",
         "set use_distributed_optimizer",
         {"parallel.overlap_param_gather": True, "use_distributed_optimizer": False},
         {"use_distributed_optimizer": True}),
    Case("gathered-parameters-are-sharded", "parallel.overlap_param_gather",
         "needs overlap_grad_reduce",
         {"parallel.overlap_param_gather": True, "parallel.overlap_grad_reduce": False},
         {"parallel.overlap_grad_reduce": True}),
    Case("optimizer-instances-are-sharded", INSTANCES, "2 copies of a sharded state",
         {INSTANCES: 2, "use_distributed_optimizer": False}, {"use_distributed_optimizer": True}),
    Case("precision-aware-optimizer-is-sharded", "use_precision_aware_optimizer",
         "needs use_distributed_optimizer",
         {"use_precision_aware_optimizer": True, "use_distributed_optimizer": False},
         {"use_distributed_optimizer": True}),
    Case("optimizer-formats-need-a-precision-aware-one", "exp_avg_dtype",
         "bf16 needs use_precision_aware_optimizer",
         {"exp_avg_dtype": "bf16"}, {"use_precision_aware_optimizer": True}),
    Case("main-gradients-match-the-reduction", "main_grads_dtype",
         "set grad_reduce_in_fp32 to false",
         {"main_grads_dtype": "bf16", "use_precision_aware_optimizer": True},
         {"grad_reduce_in_fp32": False}),
]  # fmt: skip

WIDE = {"model.hidden_size": 256, "model.num_attention_heads": 8, "model.ffn_hidden_size": 512}
PRECISION = [
    Case("one-low-precision-format", "fp4", "can't go with fp8",
         {**WIDE, "fp8": "hybrid", "fp4": "e2m1"}, {"fp8": None}),
    Case("low-precision-has-a-16-bit-base", "fp8", "goes with precision auto, bf16 or fp16, not",
         {"fp8": "hybrid", "precision": "fp32"}, {"precision": "bf16"}),
    Case("low-precision-has-a-16-bit-base", "fp4", "not fp16",
         {**WIDE, "fp4": "e2m1", "precision": "fp16"}, {"precision": "bf16"}),
    Case("fp8-weights-need-fp8", "fp8_param", "fp8 is not set",
         {"fp8_param": True}, {"fp8": "hybrid"}),
    Case("an-fp8-recipe-needs-fp8", "fp8_recipe", "tensorwise says how FP8 scales, and fp8 is not",
         {"fp8_recipe": "tensorwise"}, {"fp8": "hybrid"}),
    Case("fp8-weights-are-sharded", "fp8_param", "needs use_distributed_optimizer",
         {"fp8": "hybrid", "fp8_param": True, "use_distributed_optimizer": False},
         {"use_distributed_optimizer": True}),
    Case("delayed-scaling-is-for-all-layers", "first_last_layers_bf16", "take tensorwise",
         {"fp8": "hybrid", "first_last_layers_bf16": True}, {"fp8_recipe": "tensorwise"}),
    Case("bf16-layers-are-exceptions", "first_last_layers_bf16", "in BF16 already",
         {"first_last_layers_bf16": True}, {"fp8": "hybrid", "fp8_recipe": "tensorwise"}),
    Case("bf16-layers-are-on-the-end-stages", "num_layers_at_start_in_bf16",
         "3 is more than the 2 layers of a pipeline rank (num_layers 8 /"
         " pipeline_model_parallel_size 4); 0 to 2",
         {PP: 4, "fp8": "hybrid", "fp8_recipe": "tensorwise", "first_last_layers_bf16": True,
          "num_layers_at_start_in_bf16": 3}, {"num_layers_at_start_in_bf16": 2}),
    Case("matrices-are-aligned", "model.ffn_hidden_size",
         "ffn_hidden_size 120, and delayed takes multiples of 16; the nearest are 112 or 128",
         {"fp8": "hybrid", "model.ffn_hidden_size": 120}, {"model.ffn_hidden_size": 112}),
    Case("matrices-are-aligned", "model.ffn_hidden_size",
         "ffn_hidden_size 528, and mxfp8 takes multiples of 32; the nearest are 512 or 544",
         {**WIDE, "fp8": "hybrid", "fp8_recipe": "mxfp8", "model.ffn_hidden_size": 528},
         {"model.ffn_hidden_size": 544}),
    Case("matrices-are-aligned", "model.moe_shared_expert_intermediate_size",
         "moe_shared_expert_intermediate_size 48 / tensor 2 = 24, and delayed takes multiples of"
         " 16; the nearest are 32 or 64",
         {TP: 2, SP: True, EXPERTS: 4, "fp8": "hybrid",
          "model.moe_shared_expert_intermediate_size": 48},
         {"model.moe_shared_expert_intermediate_size": 64}),
    Case("attention-is-aligned", "model.hidden_size",
         "hidden_size 64 / tensor 8, and delayed takes multiples of 16; the nearest is 128",
         {TP: 8, "fp8": "hybrid", "model.num_query_groups": 8}, {TP: 4}),
    Case("attention-is-aligned", "model.hidden_size",
         "hidden_size 72, and delayed takes multiples of 16; the nearest are 64 or 80",
         {"fp8": "hybrid", "model.hidden_size": 72, "model.kv_channels": 8},
         {"model.hidden_size": 80}),
    Case("attention-is-aligned", "model.kv_channels",
         "8 x 8 (heads) / tensor 8 = 8, and delayed takes multiples of 16; the nearest is 16",
         {TP: 8, "fp8": "hybrid", "model.num_query_groups": 8, "model.kv_channels": 8},
         {"model.kv_channels": 16}),
    Case("attention-is-aligned", "model.kv_channels",
         "8 x 10 (heads and twice the query groups) / tensor 2 = 40, and delayed takes multiples of"
         " 16; the nearest is 16",
         {TP: 2, "fp8": "hybrid", "model.num_query_groups": 1, "model.kv_channels": 8},
         {"model.kv_channels": 16}),
    Case("tokens-are-aligned", "micro_batch_size",
         "1 x seq_length 62 / context 1 = 62 tokens, and delayed takes multiples of 8; the nearest"
         " is 4",
         {"fp8": "hybrid", "seq_length": 62}, {"micro_batch_size": 4, "global_batch_size": 32}),
    Case("tokens-are-aligned", "micro_batch_size",
         "1 x seq_length 64 / context 2 x tensor 2 = 16 tokens, and mxfp8 takes multiples of 32",
         {**WIDE, "fp8": "hybrid", "fp8_recipe": "mxfp8", CP: 2, TP: 2, SP: True},
         {"micro_batch_size": 2}),
]  # fmt: skip

FP8 = {**WIDE, "fp8": "hybrid"}
HARDWARE = [
    Case("gpu-has-the-format", "fp8",
         "delayed needs Ada (compute capability 8.9) or newer, and a100 (compute capability 8.0)"
         " is older; it has no FP8",
         FP8, {}, machine=gpu("a100"), right_machine=gpu("l40s", cuda="12.1")),
    Case("gpu-has-the-format", "fp8_recipe",
         "mxfp8 needs Blackwell (compute capability 10.0) or newer, and h100 (compute capability"
         " 9.0) is older; it can do delayed, tensorwise, blockwise",
         {**FP8, "fp8_recipe": "mxfp8"}, {}, machine=gpu("h100"), right_machine=gpu("b200")),
    Case("gpu-has-the-format", "fp4", "nvfp4 needs Blackwell",
         {**WIDE, "fp4": "e2m1"}, {}, machine=gpu("h200"), right_machine=gpu("gb300")),
    Case("gpu-has-the-format", "fp8_recipe", "blockwise needs Hopper",
         {**FP8, "fp8_recipe": "blockwise"}, {}, machine=gpu("l40s"), right_machine=gpu("h20")),
    Case("gpu-has-the-format", "fp8_recipe", "mxfp8 has no kernels for rtx_pro_6000",
         {**FP8, "fp8_recipe": "mxfp8"}, {}, machine=gpu("rtx_pro_6000"),
         right_machine=gpu("b300")),
    Case("cuda-has-the-format", "fp8_recipe", "blockwise needs CUDA 12.9, and here is 12.8",
         {**FP8, "fp8_recipe": "blockwise"}, {}, machine=gpu("h100", cuda="12.8"),
         right_machine=gpu("h100", cuda="12.9")),
    Case("cuda-has-the-format", "fp8_recipe", "delayed needs CUDA 12.1, and here is 11.8",
         FP8, {}, machine=gpu("l4", cuda="11.8"), right_machine=gpu("l4", cuda="12.1")),
    Case("transformer-engine-has-the-recipe", "fp8_recipe",
         "tensorwise needs TransformerEngine 2.2.0, and here is 2.1.0",
         {**FP8, "fp8_recipe": "tensorwise"}, {}, machine=gpu("h100", transformer_engine="2.1.0"),
         right_machine=gpu("h100", transformer_engine="2.2.0.dev0+3b1b0d6")),
    Case("transformer-engine-has-the-recipe", "fp8_recipe",
         "mxfp8 needs TransformerEngine 2.1.0, and here is 2.1.0.dev0",
         {**FP8, "fp8_recipe": "mxfp8"}, {}, machine=gpu("b200", transformer_engine="2.1.0.dev0"),
         right_machine=gpu("b200", transformer_engine="2.1.0+cu12")),
    Case("transformer-engine-has-the-recipe", "fp4", "nvfp4 needs TransformerEngine 2.7.0",
         {**WIDE, "fp4": "e2m1"}, {}, machine=gpu("b200", transformer_engine="2.6"),
         right_machine=gpu("b200", transformer_engine="2.7.0.dev0")),
    Case("transformer-engine-has-the-kernels", "parallel.moe_permute_fusion",
         "needs TransformerEngine 2.1.0, and here is 2.0",
         {EXPERTS: 4, "parallel.moe_permute_fusion": True}, {},
         machine=gpu("h100", transformer_engine="2.0"),
         right_machine=gpu("h100", transformer_engine="2.1")),
    Case("transformer-engine-has-the-kernels", "recompute_modules",
         "needs TransformerEngine 2.6.0, and here is 2.5",
         {**FP8, "fp8_recipe": "tensorwise", "recompute_granularity": "selective",
          "recompute_modules": ["layernorm"]}, {},
         machine=gpu("h100", transformer_engine="2.5"),
         right_machine=gpu("h100", transformer_engine="2.6.1")),
    Case("transformer-engine-has-the-kernels", "exp_avg_sq_dtype",
         "needs TransformerEngine 2.3.0, and here is 2.2.0",
         {"use_precision_aware_optimizer": True, "exp_avg_sq_dtype": "bf16"}, {},
         machine=gpu("h100", transformer_engine="2.2.0"),
         right_machine=gpu("h100", transformer_engine="2.3.0")),
    Case("torch-does-not-hang", EP_OVERLAP, "hangs with torch before 2.6.0, and here is 2.5.1",
         {EXPERTS: 4, EP: 2, EP_OVERLAP: True}, {}, machine=gpu("h100", torch="2.5.1"),
         right_machine=gpu("h100", torch="2.6.0+cu124")),
    Case("torch-does-not-hang", EP_OVERLAP, "here is 2.6.0a0+ecf3bae40a.nv25.01",
         {EXPERTS: 4, EP: 2, EP_OVERLAP: True}, {},
         machine=gpu("h100", torch="2.6.0a0+ecf3bae40a.nv25.01"),
         right_machine=gpu("h100", torch="2.7.0a0+7c8ec84dab.nv25.03")),
    Case("context-parallel-is-16-bit", "precision", "attention kernels for 16 bits alone",
         {CP: 2, "precision": "fp32"}, {"precision": "bf16"}, machine=gpu("h100")),
    Case("gpu-has-bf16", "precision", "bf16 needs compute capability 8.0 (Ampere), and v100 has"
         " 7.0; take fp16", {}, {"precision": "fp16"}, machine=gpu("v100")),
    Case("gpu-has-deepep", DISPATCHER, "this is rtx_pro_6000 (12.0); take alltoall",
         {EXPERTS: 4, EP: 2, DISPATCHER: "flex"}, {}, machine=gpu("rtx_pro_6000"),
         right_machine=gpu("h100")),
    Case("gpu-has-deepep", DISPATCHER, "this is gb200 (10.0); take alltoall",
         {EXPERTS: 4, EP: 2, DISPATCHER: "flex"}, {}, machine=gpu("gb200"),
         right_machine=gpu("b200")),
    Case("kernels-run-in-order", "parallel",
         "tensor 2 x context 1 on h100 needs CUDA_DEVICE_MAX_CONNECTIONS 1, and the profile sets 8",
         {TP: 2}, {}, machine=gpu("h100", environment=(("CUDA_DEVICE_MAX_CONNECTIONS", "8"),)),
         right_machine=gpu("b200", environment=(("CUDA_DEVICE_MAX_CONNECTIONS", "8"),))),
    Case("kernels-run-in-order", "parallel", "tensor 1 x context 2 on a100",
         {CP: 2}, {}, machine=gpu("a100", environment=(("CUDA_DEVICE_MAX_CONNECTIONS", "8"),)),
         right_machine=gpu("a100", environment=(("CUDA_DEVICE_MAX_CONNECTIONS", "1"),))),
]  # fmt: skip

TP_OVERLAP = "parallel.tp_comm_overlap"
HIDDEN = {**WIDE, TP: 2, SP: True, TP_OVERLAP: True}
NO_MULTICAST = (("UB_SKIPMC", "1"),)
USER_BUFFERS = [
    Case("overlapped-tensor-parallel-needs-sequence-parallel", SP, "must be on with",
         {**HIDDEN, SP: False}, {SP: True}),
    Case("overlapped-tensor-parallel-needs-sequence-parallel", TP_OVERLAP,
         "tensor_model_parallel_size is 1", {TP_OVERLAP: True}, {TP: 2, SP: True}),
    Case("overlapped-tensor-parallel-is-a-power-of-two", TP, "6 has no kernels for"
         " tp_comm_overlap; 4 or 8 have",
         {**HIDDEN, "model.num_attention_heads": 24, "model.num_query_groups": 12, TP: 6,
          "model.hidden_size": 192, "model.ffn_hidden_size": 384, "seq_length": 48},
         {TP: 4}, ranks=6, right_ranks=4),
    Case("overlapped-tensor-parallel-stays-in-a-node", TP,
         "16 spans nodes of 8 GPUs, and tp_comm_overlap writes over NVLink alone; 8 or less",
         {**HIDDEN, TP: 16, "model.num_attention_heads": 16, "model.num_query_groups": 16}, {},
         ranks=16, machine=gpu("h100"), right_machine=gpu("gb200")),
    Case("overlapped-tensor-parallel-has-multicast", TP_OVERLAP,
         'a100 does not have (Hopper and newer do); environment: {UB_SKIPMC: "1"}',
         HIDDEN, {}, machine=gpu("a100"),
         right_machine=gpu("a100", environment=NO_MULTICAST)),
    Case("overlapped-tensor-parallel-has-multicast", TP, "16 is more than the 8 that UB_SKIPMC",
         {**HIDDEN, TP: 16, "model.num_attention_heads": 16, "model.num_query_groups": 16}, {},
         ranks=16, machine=gpu("gb200", environment=NO_MULTICAST), right_machine=gpu("gb200")),
    Case("overlapped-tensor-parallel-is-in-bf16", TP_OVERLAP, "goes with precision bf16, not fp16",
         {**HIDDEN, "precision": "fp16"}, {"precision": "bf16"}),
    Case("overlapped-tensor-parallel-has-the-recipe", TP_OVERLAP, "not blockwise",
         {**HIDDEN, "fp8": "hybrid", "fp8_recipe": "blockwise"}, {"fp8_recipe": "tensorwise"}),
    Case("overlapped-mxfp8-shares-whole-blocks", TP_OVERLAP,
         "and a rank has 64 (micro_batch_size 2 x seq_length 64 / context 1 / tensor 2); the"
         " nearest value of micro_batch_size is 4",
         {**HIDDEN, "fp8": "hybrid", "fp8_recipe": "mxfp8", "micro_batch_size": 2},
         {"micro_batch_size": 4, "global_batch_size": 16}),
    Case("transformer-engine-overlaps-the-recipe", TP_OVERLAP,
         "gathers tensorwise from TransformerEngine 2.3.0 on, and here is 2.2.1",
         {**HIDDEN, "fp8": "hybrid", "fp8_recipe": "tensorwise"}, {},
         machine=gpu("h100", transformer_engine="2.2.1"),
         right_machine=gpu("h100", transformer_engine="2.3")),
    Case("transformer-engine-overlaps-the-recipe", "first_last_layers_bf16",
         "TransformerEngine 2.8.0 has; here is 2.7",
         {**HIDDEN, "fp8": "hybrid", "fp8_recipe": "tensorwise", "first_last_layers_bf16": True},
         {}, machine=gpu("h100", transformer_engine="2.7"),
         right_machine=gpu("h100", transformer_engine="2.8")),
]  # fmt: skip

BACKEND = "attention_backend"
FP8_ATTENTION = "fp8_dot_product_attention"
LONG_HEADS = {**WIDE, "model.kv_channels": 128, "fp8": "hybrid", FP8_ATTENTION: True}
KERNELS = [
    Case("activation-is-one-that-is-fused", "bias_activation_fusion", "the exact gelu",
         {"bias_activation_fusion": True, "model.activation_func": "gelu"},
         {"model.activation_func": "gelu_tanh"}),
    Case("activation-is-one-that-is-fused", "bias_activation_fusion", "where it is gated",
         {"bias_activation_fusion": True, "model.gated_linear_unit": False},
         {"model.gated_linear_unit": True}),
    Case("activation-is-one-that-is-fused", "bias_activation_fusion", "the model has neither",
         {"bias_activation_fusion": True, "model.gated_linear_unit": False,
          "model.activation_func": "gelu_tanh"}, {"model.add_bias_linear": True},
         megatron="add_bias_linear must also be True"),
    Case("activation-of-experts-is-one-that-is-fused", "bias_activation_fusion",
         "not for gelu_tanh",
         {EXPERTS: 4, "bias_activation_fusion": True, "model.activation_func": "gelu_tanh"},
         {"model.activation_func": "silu"}),
    Case("activation-of-experts-is-one-that-is-fused", "bias_activation_fusion", "with biases",
         {EXPERTS: 4, "bias_activation_fusion": True, "model.add_bias_linear": True},
         {"model.add_bias_linear": False}),
    Case("rotary-kernel-has-rotary-positions", "apply_rope_fusion",
         "model.position_embedding_type is learned_absolute",
         {"apply_rope_fusion": True, "model.position_embedding_type": "learned_absolute"},
         {"apply_rope_fusion": None}),
    Case("dropout-kernel-leaves-biases-of-grouped-experts", "bias_dropout_fusion", "leave this out",
         {EXPERTS: 4, "parallel.moe_grouped_gemm": True, "model.add_bias_linear": True,
          "bias_dropout_fusion": True}, {"bias_dropout_fusion": None}),
    Case("fused-loss-keeps-its-precision", "cross_entropy_loss_fusion", "and precision is fp32",
         {"cross_entropy_loss_fusion": True, "precision": "fp32"}, {"precision": "auto"}),
    Case("fused-loss-keeps-its-precision", "cross_entropy_loss_fusion", "not fp16",
         {"cross_entropy_loss_fusion": True, "cross_entropy_fusion_impl": "te",
          "precision": "fp16"}, {"precision": "fp32"}),
    Case("implementation-is-of-a-fused-loss", "cross_entropy_fusion_impl", "which is off",
         {"cross_entropy_fusion_impl": "te", "precision": "fp32"},
         {"cross_entropy_loss_fusion": True}),
    Case("every-shard-of-the-logits-has-a-token", "cross_entropy_fusion_impl",
         "8 tensor-parallel ranks have 48 rows each, and vocab_size 300 ends before",
         {TP: 8, "model.num_query_groups": 8, "model.vocab_size": 300,
          "cross_entropy_fusion_impl": "te"}, {"model.make_vocab_size_divisible_by": 1}),
    Case("attention-backend-is-of-the-device", BACKEND, "on h100 take auto",
         {BACKEND: "local"}, {}, machine=gpu("h100"), right_machine=Machine()),
    Case("attention-backend-is-of-the-device", BACKEND, "and v100 has 7.0; take unfused",
         {BACKEND: "flash", "precision": "fp16"}, {BACKEND: "unfused"}, machine=gpu("v100")),
    Case("attention-backend-has-16-bits", BACKEND, "not fp32",
         {BACKEND: "fused", "precision": "fp32"}, {BACKEND: "unfused"}),
    Case("attention-backend-has-the-head-size", "model.kv_channels",
         "12 is no head size of flash attention, which takes multiples of 8 up to 256; 8 or 16",
         {BACKEND: "flash", "model.kv_channels": 12}, {"model.kv_channels": 16}),
    Case("attention-backend-has-the-head-size", "model.kv_channels", "up to 128; 128,",
         {BACKEND: "fused", "model.kv_channels": 192}, {}, machine=gpu("a100"),
         right_machine=gpu("h100")),
    Case("shared-sequences-have-fused-attention", BACKEND, "over context 2; take auto",
         {CP: 2, BACKEND: "unfused"}, {BACKEND: "fused"}),
    Case("shared-sequences-have-fused-attention", CP, "Ampere or newer, not v100",
         {CP: 2, "precision": "fp16"}, {}, machine=gpu("v100"), right_machine=gpu("a100")),
    Case("fp8-attention-has-a-recipe", FP8_ATTENTION, "is for fp8, which is not set",
         {FP8_ATTENTION: True}, {"fp8": "hybrid"}),
    Case("fp8-attention-has-a-recipe", FP8_ATTENTION, "not blockwise",
         {**LONG_HEADS, "fp8_recipe": "blockwise"}, {"fp8_recipe": "mxfp8"}),
    Case("fp8-attention-has-a-recipe", BACKEND, "flash does not train in FP8",
         {**LONG_HEADS, BACKEND: "flash"}, {BACKEND: "fused"}),
    Case("fp8-attention-is-of-the-gpu", FP8_ATTENTION, "not for l40s",
         LONG_HEADS, {}, machine=gpu("l40s"), right_machine=gpu("h100")),
    Case("fp8-attention-is-of-the-gpu", FP8_ATTENTION, "on h200 needs fp8_recipe delayed",
         {**LONG_HEADS, "fp8_recipe": "tensorwise"}, {}, machine=gpu("h200"),
         right_machine=gpu("b200")),
    Case("fp8-attention-has-the-head-size", "model.kv_channels",
         "64: on Hopper FP8 attention trains heads of 128 alone",
         {**LONG_HEADS, "model.kv_channels": 64}, {}, machine=gpu("h100"),
         right_machine=gpu("b200")),
    Case("fp8-attention-has-the-head-size", "model.kv_channels",
         "136 is no head size of FP8 attention, which takes multiples of 16 up to 128; 128",
         {**LONG_HEADS, "model.kv_channels": 136}, {"model.kv_channels": 112},
         machine=gpu("b200")),
    Case("fused-router-has-a-router", "parallel.moe_router_fusion", "the model has none",
         {"parallel.moe_router_fusion": True}, {EXPERTS: 4}),
    Case("fused-router-has-a-router", "parallel.moe_router_fusion", "sinkhorn",
         {EXPERTS: 4, "parallel.moe_router_fusion": True,
          "model.moe_router_load_balancing_type": "sinkhorn"},
         {"model.moe_router_load_balancing_type": "aux_loss"}),
    Case("mxfp8-weights-are-gathered-at-once", "parallel.overlap_param_gather",
         "gathered through the gradients' buffer",
         {**WIDE, "fp8": "hybrid", "fp8_recipe": "mxfp8", "fp8_param": True,
          "parallel.overlap_param_gather": True}, {"fp8_param": False}),
    Case("matrices-are-aligned", "model.moe_shared_expert_intermediate_size",
         "moe_shared_expert_intermediate_size 40, and delayed takes multiples of 16; the nearest"
         " are 32 or 48",
         {**WIDE, EXPERTS: 4, "fp8": "hybrid", "model.moe_shared_expert_intermediate_size": 40},
         {"model.moe_shared_expert_intermediate_size": 48}),
    Case("transformer-engine-has-the-kernels", "parallel.moe_router_fusion",
         "needs TransformerEngine 2.7.0, and here is 2.6",
         {EXPERTS: 4, "parallel.moe_router_fusion": True}, {},
         machine=gpu("h100", transformer_engine="2.6"),
         right_machine=gpu("h100", transformer_engine="2.7")),
    Case("transformer-engine-has-the-kernels", "gradient_accumulation_fusion",
         "needs TransformerEngine 2.7.0, and here is 2.6",
         {EXPERTS: 4, EP: 2, EP_OVERLAP: True, "parallel.delay_wgrad_compute": True,
          "parallel.overlap_grad_reduce": False, "gradient_accumulation_fusion": False}, {},
         machine=gpu("h100", transformer_engine="2.6"),
         right_machine=gpu("h100", transformer_engine="2.7")),
    Case("transformer-engine-has-the-kernels", "fp8_dot_product_attention", "2.9.0",
         {**LONG_HEADS, "fp8_recipe": "tensorwise"}, {},
         machine=gpu("b200", transformer_engine="2.8"),
         right_machine=gpu("b200", transformer_engine="2.9")),
]  # fmt: skip

CASES = [
    *USER_BUFFERS, *KERNELS, *RANKS, *MATRICES, *PIPELINE, *LAYOUTS, *SEQUENCE, *ROUTING, *DISPATCH,
    *MEMORY, *PRECISION, *HARDWARE,
]  # fmt: skip
