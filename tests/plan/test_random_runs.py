"""Random runs, valid or not: our rules refuse what megatron-core refuses, and nothing else."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from fake_ranks import CPU, build, fake_ranks
from layout_cases import CP, EP, ETP, EXPERTS, FIRST, LAST, PP, SP, TP, VPP, Settings, config
from megatron.core.transformer.transformer_block import get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

from toolkit.errors import ToolkitError
from toolkit.megatron.config import PretrainConfig
from toolkit.megatron.setup import build_chunks
from toolkit.plan.describe import run_of
from toolkit.plan.layout import is_valid, violations
from toolkit.plan.parameters import stage_layer_numbers
from toolkit.plan.shape import Layout, Run, stage_layers

LATER = {"interleaving-needs-a-pipeline", "interleaving-has-microbatches-in-groups"}
"""What the groups and the schedule say, after the layers are dealt out."""
STRICTER = {
    "batch-divides",  # said by the calculator of microbatches, before there is a model
    "interleaving-has-microbatches-in-groups",  # said by the schedule
    "heads-divide-the-hidden-size",  # Megatron-LM's arguments.py; megatron-core rounds down
    "saved-activations-are-shared-by-tensor-ranks",  # Megatron-LM's arguments.py
    "recomputed-layers-are-there",  # block takes more layers than there are as all of them
    "rotary-positions-turn-pairs",  # a share too small for a channel leaves no positions at all
    "groups-divide-the-experts",  # one of two settings alone is ignored
}
"""Rules that the building of a model and its first step say nothing of, and why."""


def megatron_layers(settings: PretrainConfig, built: TransformerConfig) -> tuple[Any, ...]:
    """The layers of every chunk of every pipeline rank, as megatron-core deals them out."""
    size, chunks = settings.parallel.pipeline_model_parallel_size, settings.parallel.model_chunks
    return tuple(
        tuple(
            get_num_layers_to_build(built, vp_stage=c if chunks > 1 else None, pp_rank=r)
            for c in range(chunks)
        )
        for r in range(size)
    )


def megatron_numbers(settings: PretrainConfig, built: TransformerConfig) -> tuple[Any, ...]:
    """The number of every chunk's first layer, as megatron-core reckons it, rank by rank."""
    size, chunks = settings.parallel.pipeline_model_parallel_size, settings.parallel.model_chunks
    return tuple(
        tuple(
            get_transformer_layer_offset(built, vp_stage=c if chunks > 1 else None, pp_rank=r)
            for c in range(chunks)
        )
        for r in range(size)
    )


def own_numbers(run: Run) -> tuple[Any, ...]:
    """The same by our count, which goes from chunk to chunk round the ranks."""
    found = []
    for counts, numbers in zip(
        stage_layers(run.model, run.layout), stage_layer_numbers(run.model, run.layout), strict=True
    ):
        begins = [sum(counts[:chunk]) for chunk in range(len(counts))]
        found.append(tuple(numbers[b] if c else None for b, c in zip(begins, counts, strict=True)))
    return tuple(found)


def pipelines(count: int) -> Iterator[Settings]:
    """Random pipelines, valid or not."""
    dice = random.Random(7)
    for _ in range(count):
        changes: Settings = {"model.num_layers": dice.randint(2, 16), PP: dice.choice([1, 2, 3, 4])}
        changes |= {VPP: dice.choice([None, 2, 3])}
        changes |= {FIRST: dice.choice([None, None, 1, 2]), LAST: dice.choice([None, None, 1, 2])}
        for end in ("embedding", "loss"):
            changes[f"parallel.account_for_{end}_in_pipeline_split"] = dice.random() < 0.2
        yield changes | {"global_batch_size": 12}


def test_the_layers_of_any_pipeline_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused by both, or dealt out alike by both."""
    refused = accepted = 0
    for changes in pipelines(600):
        settings = config(changes)
        run = run_of(settings, settings.world_size())
        try:
            found = megatron_layers(settings, build(settings, monkeypatch))
        except (ToolkitError, AssertionError):
            assert not is_valid(run), changes
            refused += 1
            continue
        wrong = {v.rule for v in violations(run)}
        if sum(map(sum, found)) != run.model.num_layers:
            assert wrong, changes  # megatron-core would lose layers without a word
            continue
        if wrong:  # what the groups and the schedule say, which come later
            assert wrong <= LATER, changes
            continue
        assert stage_layers(run.model, run.layout) == found, changes
        theirs = megatron_numbers(settings, build(settings, monkeypatch))
        for own, others in zip(own_numbers(run), theirs, strict=True):
            for mine, other in zip(own, others, strict=True):
                assert mine in (other, None), changes  # where there is a layer
        accepted += 1
    assert refused > 100 and accepted > 50


def runs(count: int, seed: int = 11) -> Iterator[tuple[Settings, int]]:
    """Random runs over all degrees of parallelism, and their ranks; most of them wrong."""
    dice = random.Random(seed)
    for _ in range(count):
        changes: Settings = {
            TP: dice.choice([1, 1, 2, 4, 8]),
            PP: dice.choice([1, 1, 2, 4]),
            VPP: dice.choice([None, None, None, 2]),
            CP: dice.choice([1, 1, 2, 4]),
            SP: dice.random() < 0.5,
            "seq_length": dice.choice([64, 64, 60, 48]),
            "model.num_layers": dice.choice([4, 8, 8, 6]),
            "model.hidden_size": dice.choice([64, 64, 96, 60]),
            "model.num_query_groups": dice.choice([1, 2, 8, 8, 3]),
            "model.ffn_hidden_size": dice.choice([128, 96, 100]),
            "model.kv_channels": dice.choice([None, None, 2, 6, 5]),
            "model.rotary_percent": dice.choice([1.0, 1.0, 0.9, 0.5, 0.1]),
        }
        if dice.random() < 0.2:
            changes |= {
                "recompute_granularity": "full",
                "recompute_method": dice.choice(["block", "uniform"]),
                "recompute_num_layers": dice.choice([1, 2, 3, 8]),
                "distribute_saved_activations": dice.random() < 0.3,
            }
        if dice.random() < 0.5:
            changes |= experts(dice)
        yield changes | {"global_batch_size": 64}, dice.choice([8, 16, 32, 24])


def experts(dice: random.Random) -> Settings:
    """A mixture of them, and how they are cut."""
    return {
        EXPERTS: dice.choice([4, 6, 8]),
        EP: dice.choice([1, 1, 1, 2, 4]),
        ETP: dice.choice([None, None, 1, 2]),
        "parallel.moe_token_dispatcher_type": dice.choice(["alltoall", "allgather"]),
        "model.moe_ffn_hidden_size": dice.choice([64, 30]),
        "model.moe_router_topk": dice.choice([1, 2, 2, 3, 5]),
        "model.moe_router_pre_softmax": dice.random() < 0.5,
        "model.moe_router_num_groups": dice.choice([None, None, 2, 3, 4]),
        "model.moe_router_group_topk": dice.choice([None, None, 1, 2, 3]),
        "model.moe_router_score_function": dice.choice(["softmax", "softmax", "sigmoid"]),
        "model.moe_router_enable_expert_bias": dice.random() < 0.2,
        "model.moe_router_load_balancing_type": dice.choice(
            ["aux_loss", "seq_aux_loss", "sinkhorn"]
        ),
        "model.moe_aux_loss_coeff": dice.choice([0.0, 0.01]),
        "model.moe_expert_capacity_factor": dice.choice([None, None, 1.0]),
        "model.moe_pad_expert_input_to_capacity": dice.random() < 0.2,
        "model.moe_shared_expert_intermediate_size": dice.choice([None, None, 33, 32]),
        "model.add_bias_linear": dice.random() < 0.2,
    }


def in_one_place(layout: Layout) -> bool:
    """Whether a token's experts are all on its rank: collectives here only pretend."""
    return layout.tp * layout.ep * layout.expert_tp == 1


def step(settings: PretrainConfig, run: Run) -> None:
    """Build rank 0's part of the model, and send tokens through it."""
    with fake_ranks(settings.parallel, run.layout.world_size):
        first = build_chunks(settings, CPU, 300)[0].train()
        tokens = torch.zeros(1, settings.sequence // run.layout.cp, dtype=torch.long)
        if run.model.num_moe_experts is None or in_one_place(run.layout):
            first(input_ids=tokens, position_ids=tokens, attention_mask=None)


def test_megatron_refuses_what_one_rule_refuses_and_runs_what_none_does() -> None:
    counts: Counter[str] = Counter()
    for settings, ranks in runs(600):
        made = config(settings)
        run = run_of(made, ranks)
        wrong = {v.rule for v in violations(run)}
        if len(wrong) > 1:  # what would it be refused for?
            continue
        try:
            step(made, run)
        except Exception as error:
            if not wrong:
                raise AssertionError(f"{settings} on {ranks} ranks: {error}") from error
            counts["refused by both"] += 1
            continue
        tried = run.model.num_moe_experts is None or in_one_place(run.layout)
        assert not tried or wrong <= STRICTER, (wrong, settings, ranks)
        counts["refused by a rule alone" if wrong else "taken by both"] += 1
    assert counts["refused by both"] > 50 and counts["taken by both"] > 30, counts
