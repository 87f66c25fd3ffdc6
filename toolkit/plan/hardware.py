"""All constants of the estimate of speed, each with its source: GPUs, links, and kernels.

What was read off a published table or data sheet says where; what was fitted or estimated says so.
Of the estimates ``last_wave``, ``handover`` and ``contention`` (and the margin of memory) were
settled with the published rows and layouts in view, so that these are no blind test of them. The
rows in BF16 were seen, and not fitted to; those of A100s came when all constants stood.
``toolkit plan --calibrate RUN_DIR...`` fits some of them to runs of one's own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from toolkit.errors import ToolkitError
from toolkit.plan.gpu import Gpu
from toolkit.plan.machine import names_gpu

MIB: Final = 2**20
TERA: Final = 1e12
GIGA: Final = 1e9
FP32_SHARE: Final = 0.9
"""Of the peak of matrices in FP32, what the best shapes reach: an estimate."""
HBM_SHARE: Final = 0.9
"""Of the data sheet's bandwidth, what streaming kernels reach: an estimate (copies on an H100 reach
3.0 of 3.35 TB/s)."""


# Peaks, watts and bandwidths: NVIDIA's data sheets (A100, H100, H200, GH200, HGX B200 and B300,
# GB200, GB300). Shares of the peak: "Maximum Achievable Matmul FLOPS" tables of
# stas00/ml-engineering (compute/accelerator: bf16 A100 271.2, H100 794.5, GH200 828.6, B200 1745,
# B300 1769, GB200 1822; fp8 H100 1402.6, H200 1453.4, GH200 1535, B200 3432.5, GB200 3615.6
# TFLOP/s). Of FP4, of B300's FP8, of a GB300 and of an L40S they are estimates: their relatives'.
# NVLink: all-reduce of 8 GPUs, NVLS off, same book's network/README.md: H200 365.6, B200 682.2 GB/s
# (an H100 has the same links as an H200); A100: 230 to 250 GB/s are usual, an estimate.
# Attention: FlashAttention-3 (arXiv:2407.08608), figures 5 and 6, cuDNN and FA3 at 8k to 16k, head
# 128: 600 to 650 forward and about 500 backward on an H100; FlashAttention-2 (arXiv:2307.08691),
# figures 5 and 6: 190 and 170 on an A100. Blackwell's are scaled by its BF16 peak: an estimate.
A100: Final = Gpu(
    name="a100",
    memory=81920 * MIB,
    watts=400,
    sms=108,
    peak={"fp32": 19.5 * TERA, "bf16": 312 * TERA},
    matmul={"fp32": FP32_SHARE, "bf16": 0.869},
    attention=(190 * TERA, 170 * TERA),
    hbm=HBM_SHARE * 2.04 * TERA,
    nvlink=235 * GIGA,
)
H100: Final = Gpu(
    name="h100",
    memory=81559 * MIB,
    watts=700,
    sms=132,
    peak={"fp32": 66.9 * TERA, "bf16": 989.4 * TERA, "fp8": 1978.9 * TERA},
    matmul={"fp32": FP32_SHARE, "bf16": 0.803, "fp8": 0.709},
    attention=(600 * TERA, 500 * TERA),
    hbm=HBM_SHARE * 3.35 * TERA,
    nvlink=365 * GIGA,
)
B200: Final = Gpu(
    name="b200",
    memory=183359 * MIB,
    watts=1000,
    sms=148,
    peak={"fp32": 75 * TERA, "bf16": 2250 * TERA, "fp8": 4500 * TERA, "fp4": 9000 * TERA},
    matmul={"fp32": FP32_SHARE, "bf16": 0.776, "fp8": 0.763, "fp4": 0.763},
    attention=(1360 * TERA, 1130 * TERA),
    hbm=HBM_SHARE * 8.0 * TERA,
    nvlink=680 * GIGA,
)


def _slower(gpu: Gpu, name: str, share: float, **changes: Any) -> Gpu:
    """A GPU with a share of another's tensor cores' rate; attention's is taken to shrink alike."""
    return replace(
        gpu,
        name=name,
        peak={number_format: share * rate for number_format, rate in gpu.peak.items()},
        attention=(share * gpu.attention[0], share * gpu.attention[1]),
        **changes,
    )


PCIE: Final = 40 * GIGA
"""All-reduce of 8 H100s over PCIe 5 alone: 35 to 45 GB/s are usual. An estimate."""
_ALL: Final = (
    A100,
    replace(A100, name="a100-40gb", memory=40960 * MIB, hbm=HBM_SHARE * 1.555 * TERA),
    H100,
    _slower(
        H100, "h100-pcie", 756 / 989.4, watts=350, sms=114, hbm=HBM_SHARE * 2.0 * TERA, nvlink=PCIE
    ),
    _slower(
        H100,
        "h100-nvl",
        835 / 989.4,
        memory=95830 * MIB,
        watts=400,
        hbm=HBM_SHARE * 3.9 * TERA,
        nvlink=PCIE,
    ),
    replace(
        H100,
        name="h200",
        memory=143771 * MIB,
        matmul={"fp32": FP32_SHARE, "bf16": 0.803, "fp8": 0.734},
        hbm=HBM_SHARE * 4.8 * TERA,
    ),
    replace(
        H100,
        name="gh200",
        memory=97871 * MIB,  # the one with 96 GB of HBM3; that with 144 GB is as an H200 here
        watts=900,  # up to: with its Grace CPU
        matmul={"fp32": FP32_SHARE, "bf16": 0.836, "fp8": 0.776},
        hbm=HBM_SHARE * 4.0 * TERA,
    ),
    replace(
        _slower(H100, "l40s", 362 / 989.4),
        peak={"fp32": 91.6 * TERA, "bf16": 362 * TERA, "fp8": 733 * TERA},
        memory=46068 * MIB,
        watts=350,
        sms=142,
        hbm=HBM_SHARE * 0.864 * TERA,
        nvlink=PCIE / 2,  # PCIe 4
    ),
    B200,
    replace(
        B200,
        name="gb200",
        memory=189471 * MIB,
        watts=1200,
        sms=152,
        peak={"fp32": 80 * TERA, "bf16": 2500 * TERA, "fp8": 5000 * TERA, "fp4": 10000 * TERA},
        matmul={"fp32": FP32_SHARE, "bf16": 0.729, "fp8": 0.723, "fp4": 0.723},
        attention=(1510 * TERA, 1260 * TERA),
    ),
    replace(
        B200,
        name="b300",
        memory=275040 * MIB,
        watts=1100,
        peak={"fp32": 75 * TERA, "bf16": 2250 * TERA, "fp8": 4500 * TERA, "fp4": 13500 * TERA},
        matmul={"fp32": FP32_SHARE, "bf16": 0.786, "fp8": 0.763, "fp4": 0.763},
    ),
    replace(
        B200,
        name="gb300",
        memory=275040 * MIB,
        watts=1400,
        peak={"fp32": 80 * TERA, "bf16": 2500 * TERA, "fp8": 5000 * TERA, "fp4": 15000 * TERA},
        matmul={"fp32": FP32_SHARE, "bf16": 0.729, "fp8": 0.723, "fp4": 0.723},
        attention=(1510 * TERA, 1260 * TERA),
    ),
)
GPUS: Final[dict[str, Gpu]] = {gpu.name: gpu for gpu in _ALL}
"""By the name that a profile gives them."""

NETWORK: Final[dict[str, float]] = {
    "infiniband": 50.0,  # one 400 Gb/s adapter for each GPU: DGX H100 user guide, ConnectX-7
    "roce": 50.0,  # the same adapters over Ethernet
    "efa": 50.0,  # p5.48xlarge: 3,200 Gb/s for 8 GPUs (AWS's page of P5 instances)
    "gke-gib": 50.0,  # a3-ultragpu-8g: 3,200 Gb/s for 8 GPUs (Google's page of GPU networking)
    "none": 3.1,  # 200 Gb/s of Ethernet for a node of 8: an estimate, to be given in the profile
}
"""By a profile's network, raw GB/s between nodes for each GPU."""
NETWORK_SHARE: Final = 0.9
"""Of the raw rate, what large messages of NCCL reach: an estimate (nccl-tests on eight rails)."""


TILE = 128
"""Rows and columns of an output tile of a matrix kernel."""
ATTENTION_BACKWARD = 2.5
"""Operations of attention's backward pass over those of its forward: the scores again, and four
products (FlashAttention-2, section 3.1)."""
CAST_BYTES = {"delayed": 2, "tensorwise": 6, "blockwise": 4, "mxfp8": 4}
"""Bytes moved to make an FP8 element, as it is and transposed: written by the kernel before
(delayed), read once (blocks), or read twice, since the largest value must be known first."""
LOSS_BYTES = {"native": 16, "te": 10, "unfused": 52}
"""Bytes moved for each logit of 16 bits by the loss, forward and backward: megatron-core's fused
kernels; TransformerEngine's, which reads the logits three times and writes them twice; and one
kernel for each operation on a copy in FP32 (``tensor_parallel/cross_entropy.py``, counted)."""
SCORE_PASSES = (4, 6)
"""How often unfused attention reads or writes its matrix of scores, forward and backward: by the
products, the softmax and the dropout (counted)."""


FRAGMENTATION = 0.05
"""Share of the allocated memory that the allocator can't use. An estimate, settled knowing which
layouts were published."""


@dataclass(frozen=True)
class Tuning:
    """What no data sheet says."""

    sustained: float = 0.88
    """Share of the rates of kernels run alone that a whole training keeps: clocks under the power
    limit, gaps between kernels, ranks that wait for each other. Kernels that only move bytes are
    left out. FITTED, as the only number of dense models, by hand between the DGX-H100 rows with FP8
    that NVIDIA published for 2025's and 2026's software, which come out up to 8 % too slow, and for
    2024's, which come out up to 13 % too fast (``tests/plan/test_throughput.py``)."""
    fill: dict[str, int] | None = None
    """Elements of the inner dimension that filling and draining a tile's pipeline costs."""
    last_wave: float = 0.5
    """Of what the last, uneven wave of tiles costs with tiles of one size, the share that is left
    when a library picks among many: an estimate."""
    launch: float = 4e-6
    """Seconds for which a kernel waits for its launch and its last wave: an estimate."""
    layer_floor: float = 3.5e-4
    """Seconds below which the host can't issue a layer's forward pass: an estimate."""
    moe_floor: float = 3.5e-3
    """The same for a layer of experts, with its routing and sorting: FITTED to the DGX-H100 row of
    Qwen3-30B-A3B (16 GPUs, EP 16, 8,960 tokens/s/GPU)."""
    floor_backward: float = 1.5
    """The backward pass's floor over the forward's: an estimate."""
    norms: float = 0.2
    """Of a layer's kernels that move bytes, those of its norms, or of its experts' activation: what
    recomputing them costs. An estimate."""
    late: float = 0.1
    """Of communication that could run beside other work, what stays in view at the least, since the
    first and the last of it have nothing beside them: an estimate."""
    experts_late: float = 0.2
    """The same of what is sent to experts and back, where another microbatch runs beside it
    (``overlap_moe_expert_parallel_comm``): an estimate."""
    contention: float = 0.15
    """Share of hidden communication that slows the kernels beside it, since NCCL's run on the same
    multiprocessors: ``processor_usage`` of Calculon's a100_80g.json (Isaev et al. 2023)."""
    handover: float = 1e-4
    """Seconds for which a pipeline stage stops between two model chunks: an estimate."""
    hop: float = 1.5e-5
    """Seconds before the first byte of a message between GPUs: an estimate."""
    attention_short: int = 512
    """Row length at which causal attention has half of its best rate: FlashAttention-3's figures
    5 (causal, from 512 to 16k), read off."""
    attention_head64: float = 0.72
    """Of the rate with heads of 128, that with heads of 64: the same figures."""

    fragmentation: float = FRAGMENTATION

    def fill_of(self, number_format: str) -> int:
        """128 in BF16 and 256 in FP8: two steps of 64 bytes' tiles; an estimate."""
        return (self.fill or {"fp32": 64, "bf16": 128, "fp8": 256, "fp4": 512})[number_format]


@dataclass(frozen=True)
class Hardware:
    """Where a run takes place: GPUs, nodes, and what is between them."""

    gpu: Gpu
    gpus_per_node: int = 8
    """Or of a rack, where NVLink joins all of it."""
    network: float = 50.0 * NETWORK_SHARE * GIGA
    """Bytes a second between nodes for each GPU, as NCCL reaches them."""
    tuning: Tuning = Tuning()

    def calibrated(self, *, network: float | None = None, **tuning: float | None) -> Hardware:
        """The same, with other constants; what is None stays. ``tuning``: fields of ``Tuning``."""
        given = {name: value for name, value in tuning.items() if value is not None}
        return replace(
            self,
            network=self.network if network is None else network,
            tuning=replace(self.tuning, **given),  # type: ignore[arg-type]
        )


def find_gpu(name: str) -> Gpu:
    """The GPU of a profile's ``gpu_type`` or of a device's name: ``h100``, ``NVIDIA H100 80GB``.

    Raises:
        ToolkitError: there are no constants for it.
    """
    lowered = name.lower().replace(" ", "-").replace("_", "-")
    if "a100" in lowered and "40g" in lowered:  # as in A100-SXM4-40GB
        return GPUS["a100-40gb"]
    for known in sorted(GPUS, key=len, reverse=True):
        if names_gpu(lowered, known):
            return GPUS[known]
    raise ToolkitError(
        f"no constants for the GPU {name!r}",
        hint=f"node.gpu_type in the cluster's profile; known are {', '.join(GPUS)}",
    )
