"""What a GPU can do, and what TransformerEngine, CUDA and torch must be new enough for.

A rule is silent about what a profile does not say: see ``toolkit.plan.machine``.
"""

from __future__ import annotations

from packaging.version import Version

from toolkit.plan.rules.precision import recipe_of
from toolkit.plan.rules.rule import Found, RuleBook
from toolkit.plan.shape import Run

RULES = RuleBook()
CONNECTIONS = "CUDA_DEVICE_MAX_CONNECTIONS"
TE_QUANTIZATION = "TransformerEngine quantization.py: _compute_*_support"
LOWEST_CAPABILITY = {
    "delayed": (8, 9),
    "tensorwise": (8, 9),
    "blockwise": (9, 0),
    "mxfp8": (10, 0),
    "nvfp4": (10, 0),
}
LOWEST_TE = {
    "tensorwise": "2.2.0.dev0",
    "blockwise": "2.3.0.dev0",
    "mxfp8": "2.1.0",
    "nvfp4": "2.7.0.dev0",
}
"""As megatron-core asks, where ``2.2.0.dev0`` takes the builds before 2.2.0, too."""
GENERATIONS = {(8, 0): "Ampere", (8, 9): "Ada", (9, 0): "Hopper", (10, 0): "Blackwell"}


def older(installed: str | None, wanted: str) -> bool:
    """Whether a known version is older, as ``is_te_min_version`` compares (``utils.py``).

    ``2.6.0a0+nv25.01``, of NVIDIA's image of that month, is older than 2.6.0; ``2.7.0+cu12`` is not
    older than 2.7.0.
    """
    return installed is not None and Version(installed) < Version(wanted)


def has_megatron(run: Run, version: str) -> bool:
    """Whether megatron-core is known to be that new; what only older ones refuse is valid then."""
    known = run.machine.megatron_core
    return known is not None and not older(known, version)


def released(version: str) -> str:
    """``2.7.0`` of ``2.7.0.dev0``: what one would install."""
    return Version(version).base_version


def _low_precision(run: Run) -> str:
    """The setting that a recipe's problem belongs to."""
    return "fp4" if run.precision.fp4 is not None else "fp8_recipe"


@RULES.rule(TE_QUANTIZATION)
def gpu_has_the_format(run: Run) -> Found:
    """A recipe's lowest compute capability; mxfp8 also below 12.0."""
    recipe, capability = recipe_of(run), run.machine.capability
    if recipe is None or capability is None:
        return
    lowest = LOWEST_CAPABILITY[recipe]
    can = [r for r, least in LOWEST_CAPABILITY.items() if capability >= least]
    valid = f"; it can do {', '.join(can)}" if can else "; it has no FP8, leave this out"
    name = f"{run.machine.gpu or 'this GPU'} (compute capability {capability[0]}.{capability[1]})"
    if capability < lowest:
        yield (
            _low_precision(run) if can else "fp4" if run.precision.fp4 else "fp8",
            f"{recipe} needs {GENERATIONS[lowest]} (compute capability {lowest[0]}.{lowest[1]}) or"
            f" newer, and {name} is older{valid}",
        )
    elif recipe == "mxfp8" and capability >= (12, 0):
        yield _low_precision(run), f"mxfp8 has no kernels for {name} yet; take tensorwise"


@RULES.rule(TE_QUANTIZATION)
def cuda_has_the_format(run: Run) -> Found:
    """blockwise: CUDA 12.9; any FP8 on Ada: CUDA 12.1."""
    recipe, machine = recipe_of(run), run.machine
    wanted = None
    if recipe == "blockwise":
        wanted = "12.9"
    elif recipe is not None and machine.capability == (8, 9):
        wanted = "12.1"
    if wanted and older(machine.cuda, wanted):
        yield _low_precision(run), f"{recipe} needs CUDA {wanted}, and here is {machine.cuda}"


@RULES.rule("fp8_utils.py: get_fp8_recipe; Megatron-LM arguments.py: validate_args")
def transformer_engine_has_the_recipe(run: Run) -> Found:
    """tensorwise 2.2, blockwise 2.3, mxfp8 2.1, nvfp4 2.7."""
    recipe, installed = recipe_of(run), run.machine.transformer_engine
    wanted = LOWEST_TE.get(recipe or "")
    if wanted is not None and older(installed, wanted):
        yield (
            _low_precision(run),
            f"{recipe} needs TransformerEngine {released(wanted)}, and here is {installed}",
        )


@RULES.rule("transformer/transformer_config.py: __post_init__")
def transformer_engine_has_the_kernels(run: Run) -> Found:
    """Fused permutation 2.1, routing 2.7, FP8 with grouped GEMM 1.11, recomputed norms in FP8 2.6,
    delayed gradients 2.3, and 2.8 beside their reduction; Adam's state in BF16 2.3."""
    moe, installed = run.layout.moe, run.machine.transformer_engine
    modules = set(run.layout.recompute.modules)
    fp8 = run.precision.fp8 is not None
    overlap, fusions = run.layout.overlap, run.layout.fusions
    delayed, apart = overlap.delay_wgrad_compute, fusions.gradient_accumulation is False
    attends = recipe_of(run) if run.precision.fp8_dot_product_attention else None
    wanted = (
        ("parallel.moe_permute_fusion", "2.1.0", moe.permute_fusion),
        ("parallel.moe_grouped_gemm", "1.11.0", moe.grouped_gemm and fp8),
        ("recompute_modules", "2.6.0.dev0", fp8 and bool(modules & {"moe_act", "layernorm"})),
        ("parallel.moe_router_fusion", "2.7.0", moe.router_fusion),
        ("parallel.delay_wgrad_compute", "2.3.0", delayed),
        ("parallel.delay_wgrad_compute", "2.8.0", delayed and overlap.grad_reduce),
        ("gradient_accumulation_fusion", "2.7.0", delayed and apart),
        ("cross_entropy_fusion_impl", "1.13.0", fusions.cross_entropy_impl == "te"),
        ("fp8_dot_product_attention", "2.9.0", attends == "tensorwise"),
        ("fp8_dot_product_attention", "2.15.0", attends == "mxfp8"),
        ("use_precision_aware_optimizer", "1.13.0", run.precision.precision_aware_optimizer),
        ("exp_avg_dtype", "2.3.0", run.precision.exp_avg_dtype == "bf16"),
        ("exp_avg_sq_dtype", "2.3.0", run.precision.exp_avg_sq_dtype == "bf16"),
    )
    for key, version, asked in wanted:
        if asked and older(installed, version):
            yield key, f"needs TransformerEngine {released(version)}, and here is {installed}"


@RULES.rule("transformer/transformer_config.py: __post_init__")
def torch_does_not_hang(run: Run) -> Found:
    """EP overlap: torch 2.6; FSDP2: torch 2.4."""
    if run.layout.overlap.moe_expert_parallel_comm and older(run.machine.torch, "2.6.0"):
        key = "parallel.overlap_moe_expert_parallel_comm"
        yield key, f"hangs with torch before 2.6.0, and here is {run.machine.torch}"
    if run.layout.fsdp == "torch" and older(run.machine.torch, "2.4.0"):
        yield "parallel.use_torch_fsdp2", f"needs torch 2.4.0, and here is {run.machine.torch}"


@RULES.rule(
    "TransformerEngine utils.py: is_bf16_compatible; Megatron-LM arguments.py: grouped GEMM"
)
def gpu_has_bf16(run: Run) -> Found:
    """bf16 and grouped GEMM: compute capability 8.0."""
    capability = run.machine.capability
    if capability is None or capability >= (8, 0):
        return
    here = f"{run.machine.gpu or 'this GPU'} has {capability[0]}.{capability[1]}"
    if run.precision.weights == "bf16":
        yield "precision", f"bf16 needs compute capability 8.0 (Ampere), and {here}; take fp16"
    if run.layout.moe.grouped_gemm:
        key = "parallel.moe_grouped_gemm"
        yield key, f"needs compute capability 8.0 (Ampere), and {here}"


@RULES.rule("Megatron-Bridge flex_dispatcher_backend.py: validate_flex_dispatcher_backend")
def gpu_has_deepep(run: Run) -> Found:
    """flex: Ampere, Ada, Hopper, B200 and B300; not the GB200 and GB300 of an NVL72."""
    capability, gpu = run.machine.capability, run.machine.gpu or "this GPU"
    flex = run.layout.moe.token_dispatcher == "flex" and run.model.num_moe_experts
    if not flex or capability is None:
        return
    grace = capability[0] == 10 and "gb" in gpu.lower()
    if capability[0] not in (8, 9, 10) or grace:
        yield (
            "parallel.moe_token_dispatcher_type",
            "flex (DeepEP) runs on Ampere, Ada, Hopper, B200 and B300 (compute capability 8.0 to"
            f" 10.3), and this is {gpu} ({capability[0]}.{capability[1]}); take alltoall",
        )


@RULES.rule("TransformerEngine dot_product_attention/utils.py: get_attention_backend")
def context_parallel_is_16_bit(run: Run) -> Found:
    """CP in FP32 on a GPU: the kernels that pass keys around take 16 bits (or FP8)."""
    layout = run.layout
    if run.machine.capability and layout.cp > 1 and run.precision.weights == "fp32":
        yield (
            "precision",
            f"context_parallel_size {layout.cp} has attention kernels for 16 bits alone; take bf16,"
            " or leave context_parallel_size out",
        )


@RULES.rule("Megatron-LM arguments.py: validate_args; model_parallel_config.py")
def kernels_run_in_order(run: Run) -> Found:
    """TP or CP before Blackwell: CUDA_DEVICE_MAX_CONNECTIONS 1; FSDP: not 1."""
    layout, machine = run.layout, run.machine
    given = dict(machine.environment).get(CONNECTIONS)
    if layout.fsdp is not None:
        if given == "1":
            key = f"parallel.use_{'torch_fsdp2' if layout.fsdp == 'torch' else 'megatron_fsdp'}"
            yield key, f"needs {CONNECTIONS} above 1 or unset; the profile sets it to 1"
        return
    old = machine.capability is not None and machine.capability < (10, 0)
    if old and (layout.tp > 1 or layout.cp > 1) and given not in (None, "1"):
        if layout.overlap.moe_expert_parallel_comm:
            return
        degree = f"tensor {layout.tp} x context {layout.cp}"
        yield (
            "parallel",
            f"{degree} on {machine.gpu or 'this GPU'} needs {CONNECTIONS} 1, and the profile sets"
            f" {given}; leave it out there (jobs set 1 by themselves)",
        )
