"""Tensor parallelism's communication behind its matrices: what ``tp_comm_overlap`` needs.

TransformerEngine does it in user buffers: memory that the tensor-parallel ranks of one NVLink
domain write into directly.
"""

from __future__ import annotations

import math

from toolkit.plan.rules.hardware import older
from toolkit.plan.rules.precision import recipe_of
from toolkit.plan.rules.rule import SP, TP, Found, RuleBook, either, the_nearest_multiples
from toolkit.plan.shape import Run

RULES = RuleBook()
OVERLAP = "parallel.tp_comm_overlap"
BUFFERS = "TransformerEngine module/base.py: initialize_ub"
SIZES = (2, 4, 8, 16, 32)
"""Ranks that the kernels of user buffers are written for."""
LOWEST_TE = {"tensorwise": "2.3.0", "mxfp8": "2.4.0"}
MXFP8_ROWS = 128


@RULES.rule("Megatron-LM arguments.py: validate_args")
def overlapped_tensor_parallel_needs_sequence_parallel(run: Run) -> Found:
    """tp_comm_overlap without SP: it hides SP's gathers and scatters behind the products."""
    layout = run.layout
    if not layout.overlap.tp_comm or layout.sequence_parallel:
        return
    if layout.tp == 1:
        yield OVERLAP, "hides what tensor-parallel ranks send, and tensor_model_parallel_size is 1"
    else:
        yield SP, "must be on with tp_comm_overlap, which hides its communication"


@RULES.rule("TransformerEngine userbuffers.cu: callranks_ag, callranks_rs")
def overlapped_tensor_parallel_is_a_power_of_two(run: Run) -> Found:
    """tp_comm_overlap with TP 3, 5, 6: there is no kernel, and nothing says so."""
    tp = run.layout.tp
    if run.layout.overlap.tp_comm and tp > 1 and tp not in SIZES:
        near = [*[s for s in SIZES if s < tp][-1:], *[s for s in SIZES if s > tp][:1]]
        yield TP, f"{tp} has no kernels for tp_comm_overlap; {either(near)} have"


@RULES.rule(BUFFERS)
def overlapped_tensor_parallel_stays_in_a_node(run: Run) -> Found:
    """tp_comm_overlap with TP over the network; racks of GB200 are one NVLink domain."""
    layout, machine = run.layout, run.machine
    each = machine.gpus_per_node
    rack = (machine.gpu or "").lower().startswith("gb")
    if layout.overlap.tp_comm and each is not None and layout.tp > each and not rack:
        yield (
            TP,
            f"{layout.tp} spans nodes of {each} GPUs, and tp_comm_overlap writes over NVLink alone;"
            f" {each} or less, or leave tp_comm_overlap out",
        )


@RULES.rule(BUFFERS)
def overlapped_tensor_parallel_has_multicast(run: Run) -> Found:
    """tp_comm_overlap before Hopper without UB_SKIPMC; with it in a domain of 8 at most."""
    layout, machine = run.layout, run.machine
    skipped = dict(machine.environment).get("UB_SKIPMC", "0") != "0"
    if not layout.overlap.tp_comm or machine.capability is None:
        return
    if machine.capability < (9, 0) and not skipped:
        yield (
            OVERLAP,
            f"needs NVLink's multicast, which {machine.gpu or 'this GPU'} does not have (Hopper and"
            ' newer do); environment: {UB_SKIPMC: "1"} in the profile does without',
        )
    elif skipped and layout.tp > 8:
        yield TP, f"{layout.tp} is more than the 8 that UB_SKIPMC can connect; 8 or less"


@RULES.rule("TransformerEngine userbuffers.cu: half_dtype")
def overlapped_tensor_parallel_is_in_bf16(run: Run) -> Found:
    """tp_comm_overlap in FP32 or FP16: its kernels add up BF16."""
    if run.layout.overlap.tp_comm and run.precision.weights != "bf16":
        yield OVERLAP, f"goes with precision bf16, not {run.precision.weights}"


@RULES.rule("TransformerEngine module/base.py: fill_userbuffers_buffer_for_all_gather")
def overlapped_tensor_parallel_has_the_recipe(run: Run) -> Found:
    """tp_comm_overlap with blockwise FP8, or with FP4."""
    recipe = recipe_of(run)
    if run.layout.overlap.tp_comm and recipe in ("blockwise", "nvfp4"):
        yield OVERLAP, f"gathers delayed, tensorwise and mxfp8 (fp8_recipe), not {recipe}"


@RULES.rule("TransformerEngine module/base.py: fill_userbuffers_buffer_for_all_gather")
def overlapped_mxfp8_shares_whole_blocks(run: Run) -> Found:
    """tp_comm_overlap in MXFP8: (micro batch x sequence / CP / TP) % 128."""
    layout = run.layout
    cut = layout.cp * layout.tp
    whole = layout.micro_batch_size * layout.seq_length
    if not layout.overlap.tp_comm or recipe_of(run) != "mxfp8" or whole % cut:
        return
    if whole // cut % MXFP8_ROWS:
        rows = MXFP8_ROWS * cut
        sequences = rows // math.gcd(rows, layout.seq_length)
        near = the_nearest_multiples(layout.micro_batch_size, sequences, of="micro_batch_size")
        yield (
            OVERLAP,
            f"gathers mxfp8 in blocks of {MXFP8_ROWS} tokens, and a rank has {whole // cut}"
            f" (micro_batch_size {layout.micro_batch_size} x seq_length {layout.seq_length}"
            f" / context {layout.cp} / tensor {layout.tp}); {near}",
        )


@RULES.rule("TransformerEngine module/layernorm_linear.py: forward, of 2.2 and 2.3; base.py of 2.8")
def transformer_engine_overlaps_the_recipe(run: Run) -> Found:
    """tp_comm_overlap: tensorwise 2.3, mxfp8 2.4; layers in BF16 among those in FP8 2.8."""
    installed, precision = run.machine.transformer_engine, run.precision
    if not run.layout.overlap.tp_comm or precision.fp8 is None:
        return
    wanted = LOWEST_TE.get(precision.fp8_recipe)
    if wanted is not None and older(installed, wanted):
        yield (
            OVERLAP,
            f"gathers {precision.fp8_recipe} from TransformerEngine {wanted} on, and here is"
            f" {installed}",
        )
    if precision.first_last_layers_bf16 and older(installed, "2.8.0"):
        yield (
            "first_last_layers_bf16",
            "with tp_comm_overlap needs buffers of two kinds, which TransformerEngine 2.8.0 has;"
            f" here is {installed}",
        )
