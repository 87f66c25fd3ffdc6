"""Both sides of the boundaries of fully sharded data parallelism; see ``layout_cases``."""

from layout_cases import (
    CP,
    EP,
    EP_OVERLAP,
    ETP,
    EXPERTS,
    INSTANCES,
    PP,
    TP,
    Case,
    Settings,
    gpu,
)

MEGATRON = "parallel.use_megatron_fsdp"
TORCH = "parallel.use_torch_fsdp2"
STRATEGY = "parallel.data_parallel_sharding_strategy"
OUTER = "parallel.outer_dp_sharding_strategy"
REDUCE = "parallel.overlap_grad_reduce"
GATHER = "parallel.overlap_param_gather"
DOUBLE = "parallel.fsdp_double_buffer"
USER_BUFFERS = "parallel.nccl_ub"
FSDP: Settings = {MEGATRON: True}
FSDP2: Settings = {
    TORCH: True,
    "use_distributed_optimizer": False,
    "grad_reduce_in_fp32": False,
}
HYBRID: Settings = {MEGATRON: True, INSTANCES: 2, OUTER: "optim"}
OVERLAPPED: Settings = {MEGATRON: True, EXPERTS: 4, EP: 2, EP_OVERLAP: True}
NEW = gpu("h100", megatron_core="0.19.2")
ONE_CONNECTION = gpu("h100", environment=(("CUDA_DEVICE_MAX_CONNECTIONS", "1"),))
EXPANDABLE = (("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True"),)

FSDP_CASES = [
    Case("torch-fsdp-stands-alone", TORCH, "pipeline_model_parallel_size 2; it needs 1",
         {**FSDP2, PP: 2}, {PP: 1}),
    Case("torch-fsdp-stands-alone", TORCH, "expert_model_parallel_size 2; it needs 1",
         {**FSDP2, EXPERTS: 4, EP: 2}, {EP: 1}),
    Case("torch-fsdp-stands-alone", TORCH, "shards the state itself; set that to false",
         {**FSDP2, "use_distributed_optimizer": True}, {"use_distributed_optimizer": False}),
    Case("torch-fsdp-stands-alone", TORCH, "tied embeddings",
         {**FSDP2, "model.untie_embeddings_and_output_weights": False},
         {"model.untie_embeddings_and_output_weights": True}),
    Case("torch-fsdp-stands-alone", TORCH, "precision fp16",
         {**FSDP2, "precision": "fp16"}, {"precision": "bf16"}),
    Case("torch-fsdp-stands-alone", TORCH, "fp8_param, as it gathers BF16",
         {**FSDP2, "fp8": "hybrid", "fp8_param": True}, {"fp8_param": False}),
    Case("torch-fsdp-reduces-in-the-weights-format", "grad_reduce_in_fp32",
         "in the weights' format, bf16; set this to false",
         {**FSDP2, "grad_reduce_in_fp32": True}, {"grad_reduce_in_fp32": False}),
    Case("torch-fsdp-reduces-in-the-weights-format", "grad_reduce_in_fp32", "bf16",
         {**FSDP2, "grad_reduce_in_fp32": True}, {"precision": "fp32"}),
    Case("gathered-parameters-are-sharded", GATHER, "set use_distributed_optimizer",
         {**FSDP2, GATHER: True}, {GATHER: False}),
    Case("torch-does-not-hang", TORCH, "needs torch 2.4.0, and here is 2.3.1", FSDP2, {},
         machine=gpu("h100", torch="2.3.1"), right_machine=gpu("h100", torch="2.4.0")),
    Case("kernels-run-in-order", TORCH, "the profile sets it to 1", FSDP2, {},
         machine=ONE_CONNECTION, right_machine=gpu("h100")),
    Case("kernels-run-in-order", MEGATRON, "the profile sets it to 1", {**FSDP, TP: 2}, {},
         machine=ONE_CONNECTION, right_machine=gpu("h100")),
    Case("megatron-fsdp-has-the-distributed-optimizer", MEGATRON,
         "needs use_distributed_optimizer: true",
         {**FSDP, "use_distributed_optimizer": False}, {"use_distributed_optimizer": True}),
    Case("megatron-fsdp-has-no-pipeline", MEGATRON,
         "pipeline_model_parallel_size 2: it takes all 8 ranks", {**FSDP, PP: 2}, {PP: 1}),
    Case("megatron-fsdp-has-something-to-shard", STRATEGY, "leave use_megatron_fsdp out",
         {**FSDP, STRATEGY: "no_shard"}, {STRATEGY: "optim"}),
    Case("megatron-fsdp-shards-over-several-ranks", MEGATRON,
         "data 1 x context 1 / instances 1; megatron-core then counts gradients twice",
         {**FSDP, TP: 8, "model.num_query_groups": 8}, {TP: 4}),
    Case("megatron-fsdp-shards-over-several-ranks", MEGATRON, "data 4 x context 1 / instances 4",
         {**FSDP, TP: 2, INSTANCES: 4}, {STRATEGY: "optim"}),
    Case("megatron-fsdp-shards-over-several-ranks", MEGATRON, "data 1 x context 1",
         {**FSDP, TP: 4}, {CP: 2, "parallel.tensor_model_parallel_size": 2}, ranks=4),
    Case("megatron-fsdp-shards-over-several-ranks", MEGATRON,
         "8 ranks / (expert 8 x expert tensor 1)",
         {**FSDP, EXPERTS: 8, EP: 8, ETP: 1}, {EP: 4}),
    Case("sharded-gradients-are-reduced-at-once", REDUCE, "optim_grads reduces gradients during",
         {**FSDP, STRATEGY: "optim_grads", REDUCE: False}, {STRATEGY: "optim"}),
    Case("sharded-gradients-are-reduced-at-once", REDUCE, "optim_grads_params reduces",
         {**FSDP, REDUCE: False}, {REDUCE: None}),
    Case("the-outer-group-shards-what-the-inner-does", OUTER, "which is 1; set that to 2",
         {**FSDP, OUTER: "optim"}, {INSTANCES: 2}),
    Case("the-outer-group-shards-what-the-inner-does", OUTER, "optim_grads_params",
         {**HYBRID, STRATEGY: "optim_grads"}, {STRATEGY: "optim_grads_params"}),
    Case("the-outer-group-shards-what-the-inner-does", OUTER, "fp8_param in mxfp8",
         {**HYBRID, "fp8": "hybrid", "fp8_recipe": "mxfp8", "fp8_param": True,
          "model.hidden_size": 256, "model.ffn_hidden_size": 512},
         {"fp8_recipe": "tensorwise"}),
    Case("hybrid-fsdp-has-no-expert-groups", INSTANCES, "expert_model_parallel_size 2 before",
         {**FSDP, INSTANCES: 2, EXPERTS: 4, EP: 2}, {}, right_machine=NEW),
    Case("experts-overlap-calls-no-whole-layer", EP_OVERLAP, "before megatron-core 0.19",
         OVERLAPPED, {}, right_machine=NEW),
    Case("double-buffers-are-for-whole-layers", DOUBLE, "leave one of them out",
         {**OVERLAPPED, DOUBLE: True}, {DOUBLE: False}, machine=NEW),
    Case("double-buffers-are-for-whole-layers", USER_BUFFERS, "leave one of them out",
         {**OVERLAPPED, USER_BUFFERS: True}, {USER_BUFFERS: False}, machine=NEW),
    Case("torch-fsdp-accumulates-by-itself", "gradient_accumulation_fusion", "FSDP2",
         {**FSDP2, "gradient_accumulation_fusion": True}, {"gradient_accumulation_fusion": False}),
    Case("fused-accumulation-knows-sharded-gradients", "gradient_accumulation_fusion",
         "needs TransformerEngine 2.10 under use_megatron_fsdp, and here is 2.9",
         {**FSDP, "gradient_accumulation_fusion": True}, {},
         machine=gpu("h100", transformer_engine="2.9"),
         right_machine=gpu("h100", transformer_engine="2.10")),
    Case("registered-buffers-stay-where-they-are", USER_BUFFERS, "before torch 2.11",
         {**FSDP, USER_BUFFERS: True}, {},
         machine=gpu("h100", torch="2.10.0", environment=EXPANDABLE),
         right_machine=gpu("h100", torch="2.11.0", environment=EXPANDABLE)),
]  # fmt: skip
