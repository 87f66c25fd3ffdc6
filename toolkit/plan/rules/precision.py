"""FP8 and FP4: what goes together, and the sizes that the kernels take."""

from __future__ import annotations

import math
from collections.abc import Iterator

from toolkit.plan.rules.matrices import tensor_parallel_cuts_the_heads
from toolkit.plan.rules.rule import Found, RuleBook, either, the_nearest_multiples
from toolkit.plan.shape import Run

RULES = RuleBook()
CONFIG = "transformer/transformer_config.py: __post_init__"
ALIGNMENT = "TransformerEngine utils.py: assert_dim_for_fp8_exec; mxfp8_tensor.py, nvfp4_tensor.py"
ALIGNED = {"delayed": 16, "tensorwise": 16, "blockwise": 16, "mxfp8": 32, "nvfp4": 16}
"""What the inner dimension of a matrix must divide by, for each recipe."""
ROWS = {"delayed": 8, "tensorwise": 8, "blockwise": 8, "mxfp8": 32, "nvfp4": 16}
"""What the other dimensions together must divide by: tokens, or a weight's outputs."""


def recipe_of(run: Run) -> str | None:
    """The recipe of the low-precision format, or None without one."""
    if run.precision.fp4 is not None:
        return run.precision.fp4_recipe
    return run.precision.fp8_recipe if run.precision.fp8 is not None else None


@RULES.rule(CONFIG)
def one_low_precision_format(run: Run) -> Found:
    """fp8 xor fp4."""
    if run.precision.fp8 is not None and run.precision.fp4 is not None:
        yield "fp4", "can't go with fp8; leave one of the two out"


@RULES.rule("Megatron-Bridge mixed_precision.py: every FP8 and FP4 recipe has a 16-bit base")
def low_precision_has_a_16_bit_base(run: Run) -> Found:
    """fp8 or fp4 with precision fp32; fp4 with fp16."""
    precision = run.precision
    for name, valid in (("fp8", ("bf16", "fp16")), ("fp4", ("bf16",))):
        if getattr(precision, name) is not None and precision.weights not in valid:
            words = either(("auto", *valid))
            yield name, f"goes with precision {words}, not {precision.weights}"


@RULES.rule(CONFIG)
def fp8_weights_need_fp8(run: Run) -> Found:
    """fp8_param without fp8."""
    if run.precision.fp8_param and run.precision.fp8 is None:
        yield "fp8_param", "keeps weights in FP8, and fp8 is not set; set fp8: hybrid"


@RULES.rule("fp8_utils.py: get_fp8_context")
def an_fp8_recipe_needs_fp8(run: Run) -> Found:
    """A recipe other than the default's without fp8: megatron-core would not look at it."""
    recipe = run.precision.fp8_recipe
    if recipe != "delayed" and run.precision.fp8 is None:
        yield "fp8_recipe", f"{recipe} says how FP8 scales, and fp8 is not set; set fp8: hybrid"


@RULES.rule("Megatron-LM arguments.py: validate_args")
def fp8_weights_are_sharded(run: Run) -> Found:
    """fp8_param without the distributed optimizer and without FSDP."""
    layout = run.layout
    if run.precision.fp8_param and not layout.distributed_optimizer and layout.fsdp is None:
        yield "fp8_param", "needs use_distributed_optimizer: true (or FSDP)"


@RULES.rule(CONFIG)
def delayed_scaling_is_for_all_layers(run: Run) -> Found:
    """first_last_layers_bf16 with the delayed recipe."""
    precision = run.precision
    if precision.first_last_layers_bf16 and precision.fp8 and precision.fp8_recipe == "delayed":
        yield (
            "first_last_layers_bf16",
            "can't go with fp8_recipe delayed; take tensorwise, blockwise or mxfp8",
        )


@RULES.rule("fp8_utils.py: is_first_last_bf16_layer (asked only with fp8 or fp4)")
def bf16_layers_are_exceptions(run: Run) -> Found:
    """first_last_layers_bf16 where all layers are BF16."""
    precision = run.precision
    if precision.first_last_layers_bf16 and precision.fp8 is None and precision.fp4 is None:
        yield "first_last_layers_bf16", "all layers are in BF16 already; set fp8, or leave this out"


@RULES.rule(CONFIG)
def bf16_layers_are_on_the_end_stages(run: Run) -> Found:
    """num_layers_at_*_in_bf16 <= layers / PP."""
    precision, most = run.precision, run.model.num_layers // run.layout.pp
    if not precision.first_last_layers_bf16 or precision.fp8 is None:
        return
    for name in ("num_layers_at_start_in_bf16", "num_layers_at_end_in_bf16"):
        if getattr(precision, name) > most:
            yield (
                name,
                f"{getattr(precision, name)} is more than the {most} layers of a pipeline rank"
                f" (num_layers {run.model.num_layers} / pipeline_model_parallel_size"
                f" {run.layout.pp}); 0 to {most}",
            )


@RULES.rule("optimizer/optimizer.py: step_with_ready_grads (overlap_param_gather)")
def mxfp8_weights_are_gathered_at_once(run: Run) -> Found:
    """fp8_param in MXFP8 with overlap_param_gather: the new weights wait for the next gradients'
    buffer, and our loop does not carry them over."""
    if run.precision.fp8_param and recipe_of(run) == "mxfp8" and run.layout.overlap.param_gather:
        yield (
            "parallel.overlap_param_gather",
            "can't go with weights in mxfp8 (fp8_param), which are gathered through the gradients'"
            " buffer; leave one of the two out",
        )


def _matrices(run: Run) -> Iterator[tuple[str, int, int]]:
    """The inner dimensions of the MLPs: the setting, its value, and the ranks that share it."""
    model, tp = run.model, run.layout.tp
    if not (model.moe_layers and all(model.moe_layers)):
        yield "ffn_hidden_size", model.ffn_hidden_size, tp
    if model.num_moe_experts is not None:
        yield "moe_ffn_hidden_size", model.moe_ffn_hidden_size, run.layout.expert_tp
        shared = model.moe_shared_expert_intermediate_size or 0
        yield "moe_shared_expert_intermediate_size", shared, tp


@RULES.rule(ALIGNMENT)
def matrices_are_aligned(run: Run) -> Found:
    """Each dimension of a rank's matrices in the MLPs % 16 (mxfp8: 32)."""
    recipe = recipe_of(run)
    if recipe is None:
        return
    step = ALIGNED[recipe]
    for name, size, ranks in _matrices(run):
        if not size % ranks and (size // ranks) % step:
            shared = f" / tensor {ranks} = {size // ranks}" if ranks > 1 else ""
            yield (
                f"model.{name}",
                f"{name} {size}{shared}, and {recipe} takes multiples of {step};"
                f" {the_nearest_multiples(size, step * ranks)}",
            )


@RULES.rule(ALIGNMENT)
def attention_is_aligned(run: Run) -> Found:
    """hidden_size, and a rank's heads and QKV rows x kv_channels, % 16 (mxfp8: 32)."""
    recipe, model, tp = recipe_of(run), run.model, run.layout.tp
    if recipe is None or not tensor_parallel_cuts_the_heads(run):
        return
    step = ALIGNED[recipe]
    heads, rows = model.num_attention_heads, model.num_attention_heads + 2 * model.num_query_groups
    channels = step * tp // math.gcd(step * tp, heads, rows)
    follow = model.kv_channels_follow
    if model.hidden_size % step or (follow and model.kv_channels % channels):
        least = math.lcm(step, heads * channels) if follow else step
        shared = f" / tensor {tp}" if follow and tp > 1 else ""
        yield (
            "model.hidden_size",
            f"hidden_size {model.hidden_size}{shared}, and {recipe} takes multiples of {step};"
            f" {the_nearest_multiples(model.hidden_size, least)}",
        )
    elif model.kv_channels % channels:
        parts = heads if heads * model.kv_channels % (step * tp) else rows
        what = "heads" if parts == heads else "heads and twice the query groups"
        yield (
            "model.kv_channels",
            f"{model.kv_channels} x {parts} ({what}) / tensor {tp} ="
            f" {parts * model.kv_channels / tp:g}, and {recipe} takes multiples of {step};"
            f" {the_nearest_multiples(model.kv_channels, channels)}",
        )


@RULES.rule(ALIGNMENT)
def tokens_are_aligned(run: Run) -> Found:
    """Tokens of a rank's microbatch % 8 (mxfp8: 32, nvfp4: 16)."""
    recipe, layout = recipe_of(run), run.layout
    cut = layout.cp * (layout.tp if layout.sequence_parallel else 1)
    if recipe is None or layout.seq_length % cut:
        return
    own, step = layout.seq_length // cut, ROWS[recipe]
    tokens = layout.micro_batch_size * own
    if tokens % step:
        shared = " x ".join(
            [f"context {layout.cp}"] + ([f"tensor {layout.tp}"] if cut > layout.cp else [])
        )
        yield (
            "micro_batch_size",
            f"{layout.micro_batch_size} x seq_length {layout.seq_length} / {shared} = {tokens}"
            f" tokens, and {recipe} takes multiples of {step};"
            f" {the_nearest_multiples(layout.micro_batch_size, step // math.gcd(step, own))}",
        )
