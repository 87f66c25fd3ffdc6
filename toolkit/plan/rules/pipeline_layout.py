"""The notation of a pipeline's stages: ``parallel.pipeline_model_parallel_layout``."""

from __future__ import annotations

from toolkit.megatron.pipeline_layout import DECODER, EMBEDDING, LOSS, MTP
from toolkit.plan.rules.rule import PP, VPP, Found, RuleBook, the_nearest_divisors
from toolkit.plan.shape import Run

RULES = RuleBook()
LAYOUT = "parallel.pipeline_model_parallel_layout"
NOTATION = "transformer/pipeline_parallel_layer_layout.py: PipelineParallelLayerLayout"
VALID = "transformer/pipeline_parallel_layer_layout.py: validate_layer_layout"
CONFIG = "transformer/transformer_config.py: __post_init__"


@RULES.rule(NOTATION)
def pipeline_layout_can_be_read(run: Run) -> Found:
    """Letters, repetitions and parentheses; or lists of layers' names."""
    if run.layout.stages_mistake is not None:
        yield LAYOUT, run.layout.stages_mistake


@RULES.rule(CONFIG)
def pipeline_layout_stands_alone(run: Run) -> Found:
    """A layout with num_layers_in_first/last_pipeline_stage or account_for_*."""
    layout = run.layout
    others = {
        "num_layers_in_first_pipeline_stage": layout.first_stage_layers is not None,
        "num_layers_in_last_pipeline_stage": layout.last_stage_layers is not None,
        "account_for_embedding_in_pipeline_split": layout.account_for_embedding,
        "account_for_loss_in_pipeline_split": layout.account_for_loss,
    }
    found = [name for name, given in others.items() if given]
    if layout.has_own_stages and found:
        yield (
            LAYOUT,
            f"says which stage has which layers, and {' and '.join(found)}"
            f" say{'s' if len(found) == 1 else ''} it, too; leave one of the two out",
        )


@RULES.rule(NOTATION)
def pipeline_ranks_divide_the_stages(run: Run) -> Found:
    """Stages of the layout % PP."""
    pp, count = run.layout.pp, len(run.layout.stages)
    if count % pp:
        yield (
            PP,
            f"{pp} does not divide the {count} stage{'s' if count > 1 else ''} of"
            " pipeline_model_parallel_layout;"
            f" {the_nearest_divisors(pp, count)}",
        )


@RULES.rule(CONFIG)
def interleaving_agrees_with_the_stages(run: Run) -> Found:
    """Stages of the layout = PP x VPP, where VPP is said, too."""
    layout, count = run.layout, len(run.layout.stages)
    if count and not count % layout.pp and count != layout.pp * layout.vpp:
        yield (
            VPP,
            f"{layout.vpp} parts x pipeline_model_parallel_size {layout.pp} ="
            f" {layout.vpp * layout.pp} stages, and pipeline_model_parallel_layout has {count};"
            f" set {count // layout.pp}, or leave this out",
        )


@RULES.rule(VALID)
def first_stage_has_the_embedding(run: Run) -> Found:
    """E once, and before all else; the first stage has the embedding whatever the letters say."""
    stages = run.layout.stages
    if not stages:
        return
    holders = [number for number, stage in enumerate(stages) for c in stage if c == EMBEDDING]
    if holders != [0] or not stages[0].startswith(EMBEDDING):
        yield LAYOUT, f"E must come once, at the beginning of stage 0; it {_comes(holders, 0)}"


@RULES.rule(VALID)
def last_stage_has_the_loss(run: Run) -> Found:
    """L once, and behind all else; the last stage has the loss whatever the letters say."""
    stages = run.layout.stages
    if not stages:
        return
    holders = [number for number, stage in enumerate(stages) for c in stage if c == LOSS]
    last = len(stages) - 1
    if holders != [last] or not stages[-1].endswith(LOSS):
        yield LAYOUT, f"L must come once, at the end of stage {last}; it {_comes(holders, last)}"


def _comes(holders: list[int], right: int) -> str:
    """Where a letter is, in words: ``comes 2 times, in stages 0 and 3``."""
    if not holders:
        return "is missing"
    if holders == [right]:
        return f"stands elsewhere in stage {right}"
    if len(holders) == 1:
        return f"comes in stage {holders[0]}"
    return f"comes {len(holders)} times, in stages {' and '.join(str(n) for n in holders)}"


@RULES.rule(VALID)
def pipeline_layout_has_all_layers(run: Run) -> Found:
    """As many letters t as the model has layers."""
    layers, count = run.model.num_layers, "".join(run.layout.stages).count(DECODER)
    if run.layout.stages and count != layers:
        change = f"add {layers - count}" if count < layers else f"take out {count - layers}"
        yield LAYOUT, f"has {count} decoder layers (t), and num_layers is {layers}; {change}"


@RULES.rule(VALID)
def pipeline_layout_has_no_multi_token_prediction(run: Run) -> Found:
    """m in a layout: the models here have no such layers."""
    if any(MTP in stage for stage in run.layout.stages):
        yield LAYOUT, "m stands for multi-token prediction, which the model has not; leave it out"


@RULES.rule("optimizer/distrib_optimizer.py: state_dict")
def every_rank_has_weights(run: Run) -> Found:
    """A rank with neither layers nor an end of the model: its optimizer can't be saved."""
    layout = run.layout
    if len(layout.stages) % layout.pp:
        return
    for rank in range(layout.pp if layout.stages else 0):
        if not any(layout.stages[rank :: layout.pp]):
            yield (
                LAYOUT,
                f"leaves pipeline rank {rank} without a layer, and a rank without weights can't"
                f" save its optimizer; give it one, or take {layout.pp - 1} ranks",
            )
