"""Both sides of the boundaries of how ranks and matrices divide; see ``layout_cases``."""

from layout_cases import CP, EP, ETP, EXPERTS, INSTANCES, PP, TP, Case

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
