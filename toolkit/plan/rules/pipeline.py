"""Pipeline parallelism: which rank has which layers, and the order of the microbatches."""

from __future__ import annotations

from toolkit.plan.rules.ranks import whole_copies
from toolkit.plan.rules.rule import (
    PP,
    VPP,
    Found,
    RuleBook,
    nearest_multiples,
    the_nearest,
    the_nearest_divisors,
    the_nearest_multiples,
)
from toolkit.plan.shape import Layout, Run

RULES = RuleBook()
FIRST = "parallel.num_layers_in_first_pipeline_stage"
LAST = "parallel.num_layers_in_last_pipeline_stage"
EMBEDDING = "account_for_embedding_in_pipeline_split"
LOSS = "account_for_loss_in_pipeline_split"
GROUP = "parallel.microbatch_group_size_per_vp_stage"


def _uneven(layout: Layout) -> bool:
    """Whether the two ends have layers of their own number; a layout leaves nothing to them."""
    if layout.has_own_stages:
        return False
    return layout.first_stage_layers is not None or layout.last_stage_layers is not None


def _counted(run: Run) -> tuple[int, str]:
    """What is dealt out to the stages, and the sum in words."""
    layout, layers = run.layout, run.model.num_layers
    extra = layout.account_for_embedding + layout.account_for_loss
    words = f"num_layers {layers}"
    words += " + 1 for the embedding" if layout.account_for_embedding else ""
    words += " + 1 for the loss" if layout.account_for_loss else ""
    return layers + extra, words


def _middle(run: Run) -> tuple[int, int]:
    """Of an uneven pipeline, the layers and the ranks between its ends."""
    ends = (run.layout.first_stage_layers, run.layout.last_stage_layers)
    layers = run.model.num_layers - sum(end or 0 for end in ends)
    return layers, run.layout.pp - sum(end is not None for end in ends)


@RULES.rule("parallel_state.py: initialize_model_parallel")
def interleaving_needs_a_pipeline(run: Run) -> Found:
    """VPP > 1 with PP 1."""
    if run.layout.vpp > 1 and run.layout.pp == 1 and run.layout.stages:
        yield (
            PP,
            f"1 rank can't take the {len(run.layout.stages)} stages of"
            " pipeline_model_parallel_layout in turns; set 2 or more, or leave the layout out",
        )
    elif run.layout.vpp > 1 and run.layout.pp == 1:
        yield (
            VPP,
            f"{run.layout.vpp} parts interleave on the ranks of a pipeline, and"
            " pipeline_model_parallel_size is 1; set that to 2 or more, or leave this out",
        )


@RULES.rule("transformer/transformer_block.py: get_num_layers_to_build")
def pipeline_divides_the_layers(run: Run) -> Found:
    """(layers, +1 for the embedding, +1 for the loss) % PP."""
    total, words = _counted(run)
    if _uneven(run.layout) or run.layout.has_own_stages:
        return
    if total % run.layout.pp:
        sum_ = f"{words} = {total}" if "+" in words else words
        yield (
            PP,
            f"{run.layout.pp} does not divide {sum_}; {the_nearest_divisors(run.layout.pp, total)}"
            f"{_by_ends(run)}",
        )


def _by_ends(run: Run) -> str:
    """What makes the ranks even where they are not: the embedding, or both ends, as layers."""
    layout, layers = run.layout, run.model.num_layers
    ends = (EMBEDDING, LOSS)
    for number in (1, 2):
        if (layers + number) % layout.pp == 0 and layers > layout.pp:
            told = " and ".join(f"{end}: true" for end in ends[:number])
            return f"; {layout.pp} divides {layers + number} with {told}"
    return ""


@RULES.rule("transformer/transformer_block.py: get_num_layers_to_build")
def interleaving_divides_the_layers_of_a_rank(run: Run) -> Found:
    """(layers / PP) % VPP."""
    layout, (total, words) = run.layout, _counted(run)
    if layout.pp == 1 or _uneven(layout) or layout.has_own_stages or total % layout.pp:
        return
    per_rank = total // layout.pp
    if per_rank % layout.vpp:
        yield (
            VPP,
            f"{layout.vpp} does not divide the {per_rank} layers of a pipeline rank"
            f" ({words}, / pipeline_model_parallel_size {layout.pp});"
            f" {the_nearest_divisors(layout.vpp, per_rank)}",
        )


@RULES.rule("transformer/transformer_config.py: __post_init__")
def uneven_stages_stand_alone(run: Run) -> Found:
    """Uneven first and last stages with account_for_*."""
    layout = run.layout
    if _uneven(layout) and (layout.account_for_embedding or layout.account_for_loss):
        yield (
            FIRST if layout.first_stage_layers is not None else LAST,
            "says how many layers an end of the pipeline has, and account_for_*_in_pipeline_split"
            " says it, too; use one of the two ways",
        )


@RULES.rule("transformer/transformer_config.py: __post_init__")
def uneven_stages_leave_layers_to_the_middle(run: Run) -> Found:
    """Layers and ranks between the ends: both, or none; and the ones divide by the others."""
    if not _uneven(run.layout):
        return
    (layers, ranks), ends = _middle(run), run.model.num_layers - _middle(run)[0]
    sums = f"{layers} of num_layers {run.model.num_layers} are left beside the {ends} at the ends"
    key = FIRST if run.layout.first_stage_layers is not None else LAST
    if layers < 0 or ranks < 0 or bool(layers) != bool(ranks):
        yield key, f"{sums}, for {ranks} ranks between; there must be both or none"
    elif ranks and layers % ranks:
        own = run.layout.first_stage_layers or run.layout.last_stage_layers or 0
        parts = run.layout.vpp
        others = [own + layers - middle for middle in nearest_multiples(layers, ranks * parts)]
        valid = sorted(end for end in others if end > 0 and not end % parts)
        near = the_nearest(valid) if valid else f"take another {PP.removeprefix('parallel.')}"
        yield (
            key,
            f"{sums}, and {ranks} ranks between (pipeline_model_parallel_size {run.layout.pp})"
            f" can't share them evenly; {near}",
        )


@RULES.rule("transformer/transformer_config.py: __post_init__")
def interleaving_divides_uneven_stages(run: Run) -> Found:
    """first % VPP, last % VPP, and the layers of each rank between % VPP."""
    layout, vpp = run.layout, run.layout.vpp
    if layout.pp == 1 or layout.has_own_stages:
        return
    for key, layers in ((FIRST, layout.first_stage_layers), (LAST, layout.last_stage_layers)):
        if layers is not None and layers % vpp:
            near = the_nearest_multiples(layers, vpp)
            yield key, f"{layers} is not a multiple of the {vpp} parts of a rank; {near}"
    if not _uneven(layout):
        return
    layers, ranks = _middle(run)
    if layers > 0 and ranks > 0 and not layers % ranks and (layers // ranks) % vpp:
        yield (
            VPP,
            f"{vpp} does not divide the {layers // ranks} layers of a rank between the ends"
            f" ({layers} / {ranks}); {the_nearest_divisors(vpp, layers // ranks)}",
        )


@RULES.rule("pipeline_parallel/schedules.py: forward_backward_pipelining_with_interleaving")
def interleaving_has_microbatches_in_groups(run: Run) -> Found:
    """PP <= group <= microbatches, and no remainder smaller than PP."""
    layout = run.layout
    batches, group = layout.num_microbatches, layout.microbatch_group or layout.pp
    step = layout.micro_batch_size * layout.dp
    if layout.vpp == 1 or not whole_copies(layout) or layout.global_batch_size % step:
        return
    if group < layout.pp:
        yield (
            GROUP,
            f"{group} is below pipeline_model_parallel_size {layout.pp};"
            f" the nearest is {layout.pp}",
        )
    elif group > batches:
        yield (
            "global_batch_size",
            f"{layout.global_batch_size} makes {batches} microbatches (/ micro_batch_size"
            f" {layout.micro_batch_size} / data_parallel_size {layout.dp}), and the interleaved"
            f" schedule takes groups of {group}; the nearest is {group * step}",
        )
    elif 0 < batches % group < layout.pp:
        yield (
            "global_batch_size",
            f"{layout.global_batch_size} makes {batches} microbatches, {batches % group} more than"
            f" whole groups of {group}, which is below pipeline_model_parallel_size {layout.pp};"
            f" {the_nearest_multiples(layout.global_batch_size, group * step)}",
        )


@RULES.rule("pipeline_parallel/schedules.py: forward_backward_pipelining_with_interleaving")
def microbatch_groups_need_interleaving(run: Run) -> Found:
    """A group size without VPP says nothing."""
    if run.layout.microbatch_group is not None and run.layout.vpp == 1:
        yield (
            GROUP,
            f"{run.layout.microbatch_group} groups the microbatches of the interleaved schedule;"
            " set virtual_pipeline_model_parallel_size, or leave this out",
        )


@RULES.rule("Megatron-LM arguments.py: validate_args")
def overlapped_sends_need_interleaving(run: Run) -> Found:
    """overlap_p2p_comm without VPP, which Megatron-LM turns off in a warning."""
    if run.layout.overlap.p2p and run.layout.vpp == 1:
        yield (
            "parallel.overlap_p2p_comm",
            "only the interleaved schedule sends while it computes; set"
            " virtual_pipeline_model_parallel_size to 2 or more, or leave this out",
        )
