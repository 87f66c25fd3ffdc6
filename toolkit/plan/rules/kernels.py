"""Fused kernels and attention's kernels: which model, format and GPU each is written for."""

from __future__ import annotations

from toolkit.plan.rules.precision import recipe_of
from toolkit.plan.rules.rule import CP, Found, RuleBook, either, nearest_multiples
from toolkit.plan.shape import Run

RULES = RuleBook()
CONFIG = "transformer/transformer_config.py: __post_init__"
BACKENDS = "TransformerEngine dot_product_attention/utils.py: get_attention_backend"
CUDNN = "TransformerEngine fused_attn.cpp: nvte_get_fused_attn_backend"
ATTENTION = "attention_backend"
LOSS = "cross_entropy_loss_fusion"
FP8_ATTENTION = "fp8_dot_product_attention"
HEAD_STEP = 8


@RULES.rule("transformer/mlp.py: MLP.forward; fusions/fused_bias_gelu.py")
def activation_is_one_that_is_fused(run: Run) -> Found:
    """bias_activation_fusion with the exact GELU, plain SiLU, or GELU without gate and bias."""
    model = run.model
    if not run.layout.fusions.bias_activation:
        return
    gated = model.gated_linear_unit
    if model.activation_func == "gelu":
        wrong = "the exact gelu has no fused kernel; gelu_tanh and gated silu have"
    elif model.activation_func == "silu" and not gated:
        wrong = "silu has a fused kernel where it is gated; set model.gated_linear_unit to true"
    elif model.activation_func == "gelu_tanh" and not (gated or model.add_bias_linear):
        wrong = "gelu_tanh is fused with a bias or a gate, and the model has neither"
    else:
        return
    yield "bias_activation_fusion", f"{wrong}, or leave this out"


@RULES.rule("transformer/mlp.py: MLP.forward; fusions/fused_bias_swiglu.py")
def activation_of_experts_is_one_that_is_fused(run: Run) -> Found:
    """bias_activation_fusion with experts that are not gated SiLU, or have biases.

    An expert's output is weighed by the router in the same kernel, and there is one for that.
    """
    model = run.model
    if not run.layout.fusions.bias_activation or model.num_moe_experts is None:
        return
    if model.activation_func == "gelu_tanh":
        wrong = "experts have a fused kernel for gated silu alone, not for gelu_tanh"
    elif model.add_bias_linear:
        wrong = "experts have no fused kernel with biases (model.add_bias_linear)"
    else:
        return
    yield "bias_activation_fusion", f"{wrong}; leave this out"


@RULES.rule("models/common/embeddings/rope_utils.py: apply_rotary_pos_emb")
def rotary_kernel_has_rotary_positions(run: Run) -> Found:
    """apply_rope_fusion with learned positions."""
    kind = run.model.position_embedding_type
    if run.layout.fusions.rope and kind != "rope":
        yield (
            "apply_rope_fusion",
            f"turns rotary positions, and model.position_embedding_type is {kind}; leave this out",
        )


@RULES.rule("transformer/moe/experts.py: TEGroupedMLP")
def dropout_kernel_leaves_biases_of_grouped_experts(run: Run) -> Found:
    """bias_dropout_fusion with grouped GEMM and biases."""
    model, layout = run.model, run.layout
    grouped = model.num_moe_experts is not None and layout.moe.grouped_gemm
    if layout.fusions.bias_dropout and grouped and model.add_bias_linear:
        yield (
            "bias_dropout_fusion",
            "can't go with parallel.moe_grouped_gemm and model.add_bias_linear; leave this out",
        )


@RULES.rule("fusions/fused_cross_entropy.py: calculate_gradients; TransformerEngine cross_entropy")
def fused_loss_keeps_its_precision(run: Run) -> Found:
    """cross_entropy_loss_fusion: native in BF16 alone, TransformerEngine's not in FP16."""
    fusions, weights = run.layout.fusions, run.precision.weights
    if not fusions.cross_entropy:
        return
    if fusions.cross_entropy_impl == "native" and weights != "bf16":
        yield LOSS, f"rounds the logits' gradient to BF16, and precision is {weights}; leave it out"
    if fusions.cross_entropy_impl == "te" and weights == "fp16":
        yield LOSS, "takes BF16 or FP32 with cross_entropy_fusion_impl te, not fp16"


@RULES.rule("models/common/language_module/language_module.py: compute_language_model_loss")
def implementation_is_of_a_fused_loss(run: Run) -> Found:
    """cross_entropy_fusion_impl te where the loss is not fused."""
    fusions = run.layout.fusions
    fused = fusions.cross_entropy
    if fused is None:
        fused = run.precision.weights == "bf16"
    if fusions.cross_entropy_impl == "te" and not fused:
        yield (
            "cross_entropy_fusion_impl",
            "te is for cross_entropy_loss_fusion, which is off; set that to true, or leave this"
            " out",
        )


@RULES.rule("TransformerEngine triton/cross_entropy.py: online_softmax_kernel")
def every_shard_of_the_logits_has_a_token(run: Run) -> Found:
    """cross_entropy_fusion_impl te: the last tensor-parallel rank has more than padding."""
    model, tp = run.model, run.layout.tp
    if run.layout.fusions.cross_entropy_impl != "te" or model.vocab_size is None:
        return
    rows = model.padded_vocab_size(tp) // tp
    if rows * (tp - 1) >= model.vocab_size:
        yield (
            "cross_entropy_fusion_impl",
            f"te makes NaN of a shard without a token: {tp} tensor-parallel ranks have {rows} rows"
            f" each, and vocab_size {model.vocab_size} ends before the last one's; take native, or"
            " a smaller model.make_vocab_size_divisible_by",
        )


@RULES.rule(BACKENDS)
def attention_backend_is_of_the_device(run: Run) -> Found:
    """local on a GPU; flash and fused before Ampere."""
    backend, machine = run.layout.fusions.attention_backend, run.machine
    if machine.capability is None:
        return
    name = machine.gpu or "this GPU"
    if backend == "local":
        yield ATTENTION, f"local is for CPUs; on {name} take auto, flash, fused or unfused"
    elif backend in ("flash", "fused") and machine.capability < (8, 0):
        major, minor = machine.capability
        yield (
            ATTENTION,
            f"{backend} needs compute capability 8.0 (Ampere), and {name} has {major}.{minor};"
            " take unfused",
        )


@RULES.rule(BACKENDS)
def attention_backend_has_16_bits(run: Run) -> Found:
    """flash and fused in FP32."""
    backend = run.layout.fusions.attention_backend
    if backend in ("flash", "fused") and run.precision.weights == "fp32":
        yield ATTENTION, f"{backend} computes in bf16 or fp16, not fp32; take auto or unfused"


@RULES.rule(CUDNN)
def attention_backend_has_the_head_size(run: Run) -> Found:
    """flash: kv_channels % 8, up to 256. fused: % 8, up to 128, 256 from Hopper on."""
    backend, size = run.layout.fusions.attention_backend, run.model.kv_channels
    if backend not in ("flash", "fused"):
        return
    capability = run.machine.capability
    small = backend == "fused" and capability is not None and capability < (9, 0)
    most = 128 if small else 256
    if size % HEAD_STEP or size > most:
        near = [n for n in nearest_multiples(size, HEAD_STEP) if n <= most] or [most]
        yield (
            "model.kv_channels",
            f"{size} is no head size of {backend} attention, which takes multiples of {HEAD_STEP}"
            f" up to {most}; {either(near)}, or take attention_backend auto",
        )


@RULES.rule(BACKENDS)
def shared_sequences_have_fused_attention(run: Run) -> Found:
    """CP > 1 with unfused attention, or before Ampere, where there is no other."""
    layout, machine = run.layout, run.machine
    if layout.cp == 1:
        return
    if layout.fusions.attention_backend == "unfused":
        yield ATTENTION, f"unfused can't share a sequence over context {layout.cp}; take auto"
    if machine.capability is not None and machine.capability < (8, 0):
        yield CP, f"{layout.cp} needs flash or fused attention: Ampere or newer, not {machine.gpu}"


@RULES.rule(BACKENDS)
def fp8_attention_has_a_recipe(run: Run) -> Found:
    """fp8_dot_product_attention without fp8, or with the blockwise recipe."""
    precision = run.precision
    if not precision.fp8_dot_product_attention:
        return
    if precision.fp8 is None:
        yield FP8_ATTENTION, "is for fp8, which is not set; set fp8: hybrid, or leave this out"
    elif precision.fp8_recipe == "blockwise":
        yield (
            FP8_ATTENTION,
            "has kernels for fp8_recipe delayed, and on Blackwell tensorwise and mxfp8, not"
            " blockwise",
        )
    if run.layout.fusions.attention_backend in ("flash", "unfused"):
        backend = run.layout.fusions.attention_backend
        yield ATTENTION, f"{backend} does not train in FP8; fused does (fp8_dot_product_attention)"


@RULES.rule(BACKENDS)
def fp8_attention_is_of_the_gpu(run: Run) -> Found:
    """fp8_dot_product_attention: delayed from Hopper, tensorwise and mxfp8 from Blackwell on."""
    capability, recipe = run.machine.capability, recipe_of(run)
    if not run.precision.fp8_dot_product_attention or capability is None or recipe is None:
        return
    name = run.machine.gpu or "this GPU"
    if capability < (9, 0) or capability >= (12, 0):
        yield FP8_ATTENTION, f"has kernels for Hopper, B200 and B300, not for {name}"
    elif capability < (10, 0) and recipe in ("tensorwise", "mxfp8"):
        yield FP8_ATTENTION, f"on {name} needs fp8_recipe delayed, not {recipe}"


@RULES.rule(CUDNN)
def fp8_attention_has_the_head_size(run: Run) -> Found:
    """fp8_dot_product_attention: kv_channels 128 on Hopper; % 16 up to 128 on Blackwell."""
    capability = run.machine.capability
    if not run.precision.fp8_dot_product_attention or capability is None:
        return
    size = run.model.kv_channels
    if capability < (10, 0) and size != 128:
        yield "model.kv_channels", f"{size}: on Hopper FP8 attention trains heads of 128 alone"
    elif size % 16 or size > 128:
        near = [n for n in nearest_multiples(size, 16) if n <= 128] or [128]
        yield (
            "model.kv_channels",
            f"{size} is no head size of FP8 attention, which takes multiples of 16 up to 128;"
            f" {either(near)}",
        )


@RULES.rule("Megatron-LM arguments.py: validate_args")
def torch_fsdp_accumulates_by_itself(run: Run) -> Found:
    """gradient_accumulation_fusion with FSDP2."""
    if run.layout.fusions.gradient_accumulation and run.layout.fsdp == "torch":
        yield "gradient_accumulation_fusion", "can't go with torch's FSDP (FSDP2); leave this out"


@RULES.rule("transformer/moe/router.py: TopKRouter.routing")
def fused_router_has_a_router(run: Run) -> Found:
    """moe_router_fusion in a dense model, or with sinkhorn, which has no kernel."""
    key = "parallel.moe_router_fusion"
    if not run.layout.moe.router_fusion:
        return
    if run.model.num_moe_experts is None:
        yield key, "chooses experts, and the model has none; leave this out"
    elif run.model.moe_router_load_balancing_type == "sinkhorn":
        yield key, "has no kernel for moe_router_load_balancing_type sinkhorn; leave this out"
