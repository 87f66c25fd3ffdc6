"""Published speeds on DGX H100s: tokens a second and GPU, with the layouts that reached them."""

from dataclasses import replace

from plan_shapes import FP8, preset, published

from toolkit.plan.hardware import GPUS, NETWORK_SHARE, Hardware
from toolkit.plan.shape import Layout, ModelShape, MoeKernels, Precision, Recompute

FSDP_8B = published(8, 128, 8192, fsdp="megatron", recompute=Recompute("full", "block", 5))
ENDS = {"account_for_embedding": True, "account_for_loss": True}

# docs/performance-summary-archive.md of NVIDIA-NeMo/Megatron-Bridge: containers 25.11 to 26.06.
NEWEST = [
    ("llama-3-8b", FSDP_8B, 14451, 14451),
    ("llama-3-70b", published(64, 256, 8192, 4, 8, vpp=5), 1621, 1664),
    ("llama-3-70b", published(64, 128, 8192, 4, 8, vpp=5), 1602, 1619),
    ("llama-3.1-405b", published(1024, 1536, 8192, 8, 8, 2, 8, **ENDS), 311, 328),
    ("llama-3.1-405b", published(1024, 512, 8192, 8, 8, 2, 8, **ENDS), 292, 302),
]
# docs/source/performance/performance_summary.md of NVIDIA/NeMo: container 24.07.
OF_2024 = [
    ("gpt3-175b", published(128, 256, 2048, 4, 8, vpp=6), 716),
    ("gpt3-175b", published(512, 2048, 2048, 4, 8, vpp=6, micro_batch_size=2), 825),
    ("llama-2-7b", published(8, 128, 4096), 16934),
    ("llama-2-13b", published(16, 128, 4096, 1, 4, vpp=10), 8715),
    ("llama-2-70b", published(64, 128, 4096, 4, 4, vpp=20), 1728),
    ("llama-3-8b", published(8, 128, 8192, cp=2), 12273),
    ("llama-3-70b", published(64, 128, 8192, 4, 4, 2, 5), 1524),
]
DELAYED = replace(FP8, fp8_recipe="delayed")
BF16 = Precision(grad_reduce_in_fp32=False)

# Megatron-Bridge as above; forced balance among the experts. Not fitted to, but for the first row,
# which gave ``Tuning.moe_floor``.
KERNELS = MoeKernels(token_dispatcher="flex", grouped_gemm=True, permute_fusion=True)
EXPERTS = [
    ("qwen3-30b-a3b", published(16, 1024, 4096, ep=16, etp=1, moe=KERNELS), 8960),
    (
        "qwen3-235b-a22b",
        published(256, 8192, 4096, 2, 8, vpp=4, ep=32, etp=1, moe=KERNELS, **ENDS),
        1712,
    ),
]
# The same page's older containers, 26.02 and 25.11, without tokens dropped.
OLDER_EXPERTS = [
    ("qwen3-30b-a3b", published(16, 1024, 4096, pp=2, vpp=12, ep=8, etp=1, moe=KERNELS), 5113),
    (
        "qwen3-30b-a3b",
        published(16, 512, 4096, pp=2, vpp=24, ep=8, etp=1, micro_batch_size=2, moe=KERNELS),
        5275,
    ),
    (
        "qwen3-235b-a22b",
        published(256, 2048, 4096, 2, 8, vpp=4, ep=32, etp=1, moe=KERNELS, **ENDS),
        1575,
    ),
]
# docs/source/performance/performance_long_sequence.md of NVIDIA/NeMo: container 24.03, Llama 2 7B
# with FP8; the attention kernels of that time were slower than those that the constants are of.
LONG = [
    ("llama-2-7b", published(ranks, batch, 1024 * kilo, tp, pp, cp), tokens)
    for kilo, ranks, batch, tp, pp, cp, tokens in (
        (8, 8, 512, 1, 2, 1, 13907),
        (16, 16, 256, 2, 1, 1, 10082),
        (32, 32, 128, 2, 1, 2, 6687),
        (64, 64, 64, 4, 1, 2, 4021),
        (128, 128, 32, 4, 1, 4, 2260),
        (256, 256, 16, 4, 1, 8, 1214),
        (512, 512, 8, 8, 1, 16, 635),
        (1024, 1024, 4, 8, 1, 32, 318),
    )
]
# arXiv:2407.21783, table 4: TFLOP/s a GPU in BF16, TP8 CP1 PP16. Its interleaving is not told: 4
# parts are taken.
LLAMA_3 = [
    ("llama-3.1-405b", published(16384, 2048, 8192, 8, 16, vpp=4, **ENDS), 400),
    ("llama-3.1-405b", published(8192, 2048, 8192, 8, 16, vpp=4, **ENDS), 430),
]

# Narayanan et al. 2021 (arXiv:2104.04473), table 1: TFLOP/s a GPU on A100s with TP8, in 16 bits,
# all layers recomputed, and the recomputation counted. Neither the microbatches are told, of which
# 4 to 1 sequences are taken, nor the interleaving: none.
SC21 = [
    # layers, hidden, heads, GPUs, PP, batch, microbatch, TFLOP/s
    (40, 6144, 48, 256, 1, 1024, 4, 135),
    (48, 8192, 64, 512, 2, 1536, 4, 138),
    (60, 10240, 80, 1024, 4, 1792, 2, 140),
    (80, 12288, 96, 1536, 8, 2304, 2, 148),
    (96, 16384, 128, 1920, 16, 2160, 1, 155),
    (105, 20480, 128, 2520, 35, 2520, 1, 163),
    (128, 25600, 160, 3072, 64, 3072, 1, 163),
]
SELENE = Hardware(GPUS["a100"], 8, 25e9 * NETWORK_SHARE)
"""DGX A100s: a 200 Gb/s adapter for each GPU."""


def of_sc21(row: tuple[int, ...]) -> tuple[ModelShape, Layout, float]:
    """The model, its layout, and the operations that the paper counts for a step (section 5.1)."""
    layers, hidden, heads, ranks, pp, batch, size, _ = row
    model = preset(
        "gpt3-175b",
        num_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        num_query_groups=heads,
        kv_channels=hidden // heads,
        ffn_hidden_size=4 * hidden,
    )
    layout = Layout(
        world_size=ranks,
        tp=8,
        pp=pp,
        micro_batch_size=size,
        global_batch_size=batch,
        seq_length=2048,
        distributed_optimizer=False,
        recompute=Recompute("full", "uniform", 1),
    )
    ends = 1 + 2048 / (6 * hidden) + 51200 / (16 * layers * hidden)
    return model, layout, 96.0 * batch * 2048 * layers * hidden**2 * ends
