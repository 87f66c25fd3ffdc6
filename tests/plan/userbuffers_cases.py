"""Both sides of the boundaries of tp_comm_overlap; see ``layout_cases``."""

from layout_cases import SP, TP, WIDE, Case, gpu

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
