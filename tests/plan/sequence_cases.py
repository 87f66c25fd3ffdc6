"""Both sides of the boundaries of shared sequences; see ``layout_cases``."""

from layout_cases import CP, SP, TP, Case

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
