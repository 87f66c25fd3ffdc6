"""Values that a message calls right: each, in the place of the wrong one, satisfies its rule."""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Iterator
from typing import Any

import pytest
from all_cases import CASES
from layout_cases import (
    CP,
    EP,
    ETP,
    EXPERTS,
    FIRST,
    GROUP,
    LAST,
    PP,
    SP,
    TP,
    VPP,
    Case,
    Settings,
    config,
)

from toolkit.megatron.config import ModelConfig, ParallelConfig
from toolkit.plan.describe import run_of
from toolkit.plan.layout import Violation, violations
from toolkit.plan.shape import Run

NEAREST = re.compile(r"the nearest (?:values? of (\w+) )?(?:is|are) ([\d., or]*\d)( ranks)?")
BOUNDS = re.compile(r"; (\d+) to (\d+)$")
SIZES = re.compile(r"\[(\d+), (\d+)\] would do")
RANKS = "ranks"
SIZES_KEY = "parallel.hierarchical_context_parallel_sizes"


def suggestions(found: Violation) -> Iterator[tuple[str, Any]]:
    """The settings that a message names, each with a value that would be right."""
    if nearest := NEAREST.search(found.message):
        of, values, ranks = nearest.groups()
        setting = RANKS if ranks else dotted(of) if of else found.key
        for value in re.split(", | or ", values):
            yield setting, float(value) if "." in value else int(value)
    if bounds := BOUNDS.search(found.message):
        yield from ((found.key, int(value)) for value in bounds.groups())
    if sizes := SIZES.search(found.message):
        yield SIZES_KEY, [int(size) for size in sizes.groups()]


def dotted(name: str) -> str:
    """``kv_channels`` as a stage's settings have it: ``model.kv_channels``."""
    for place, fields in (("model", ModelConfig), ("parallel", ParallelConfig)):
        if name in fields.model_fields:
            return f"{place}.{name}"
    return name


def still_wrong(found: Violation, run: Run) -> bool:
    """Whether the same rule complains of the same setting."""
    return (found.rule, found.key) in {(v.rule, v.key) for v in violations(run)}


def unhelpful(settings: Settings, run: Run) -> Iterator[str]:
    """Suggestions of a wrong run that leave its rule violated."""
    for found in violations(run):
        for setting, value in suggestions(found):
            ranks = value if setting == RANKS else run.layout.world_size
            changed = {} if setting == RANKS else {setting: value}
            repaired = run_of(config({**settings, **changed}), ranks, machine=run.machine)
            if still_wrong(found, repaired):
                yield f"{found.rule}: {found.message} (tried {setting} {value})"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_suggestion_satisfies_its_rule(case: Case) -> None:
    assert list(unhelpful(case.wrong, case.wrong_run)) == []


def test_most_messages_with_a_number_suggest_others() -> None:
    """Seen here, so that the pattern that looks for them can't go stale."""
    found = [v for case in CASES for v in violations(case.wrong_run)]
    assert sum(bool(list(suggestions(v))) for v in found) >= 45
    unseen = [v for v in found if "nearest" in v.message and not list(suggestions(v))]
    assert unseen == []


def anything(count: int, seed: int = 5) -> Iterator[tuple[Settings, int]]:
    """Random settings with many mistakes at once, and their ranks."""
    dice = random.Random(seed)
    sizes = [1, 1, 2, 3, 4, 6, 8]
    for _ in range(count):
        changes: Settings = {name: dice.choice(sizes) for name in (TP, PP, CP)}
        changes |= {VPP: dice.choice([None, None, 2, 3]), SP: dice.random() < 0.5}
        changes |= {FIRST: dice.choice([None, None, 1, 3]), LAST: dice.choice([None, None, 2, 3])}
        changes |= {GROUP: dice.choice([None, None, 2, 4]), "precision": "bf16"}
        changes |= {
            "model.num_layers": dice.randint(1, 16),
            "model.hidden_size": dice.choice([64, 72, 100, 256]),
            "model.num_attention_heads": dice.choice([6, 8, 12]),
            "model.num_query_groups": dice.choice([1, 2, 3, 4, 8]),
            "model.ffn_hidden_size": dice.choice([96, 120, 130, 512]),
            "model.kv_channels": dice.choice([None, None, 7, 16]),
            "model.rotary_percent": dice.choice([1.0, 1.0, 0.3, 0.9]),
            "seq_length": dice.choice([32, 60, 62, 64]),
            "micro_batch_size": dice.choice([1, 2, 3]),
            "global_batch_size": dice.choice([6, 8, 17, 48]),
            "fp8": dice.choice([None, "hybrid"]),
            "fp8_recipe": dice.choice(["delayed", "mxfp8"]),
            "parallel.cp_comm_type": dice.choice(["p2p", "a2a", "a2a+p2p"]),
            SIZES_KEY: dice.choice([None, [2, 2], [2, 4], [3, 2]]),
            "parallel.num_distributed_optimizer_instances": dice.choice([1, 1, 2, 3]),
        }
        if dice.random() < 0.3:
            changes |= {
                "recompute_granularity": "full",
                "recompute_method": dice.choice(["block", "uniform"]),
                "recompute_num_layers": dice.randint(1, 9),
            }
        if dice.random() < 0.5:
            changes |= {
                EXPERTS: dice.choice([4, 6, 8]),
                EP: dice.choice([1, 2, 3, 4]),
                ETP: dice.choice([None, 1, 2]),
                "model.moe_ffn_hidden_size": dice.choice([None, 30, 64]),
                "model.moe_shared_expert_intermediate_size": dice.choice([None, 33, 64]),
                "model.moe_router_topk": dice.choice([1, 2, 3, 9]),
                "model.moe_router_num_groups": dice.choice([None, 2, 3, 4]),
                "model.moe_router_group_topk": dice.choice([None, 1, 2, 3]),
            }
        yield changes, dice.choice([4, 6, 8, 24, 48])


def test_suggestions_hold_among_other_mistakes() -> None:
    tried: dict[str, int] = {}
    for settings, ranks in anything(1500):
        run = run_of(config(settings), ranks)
        assert list(unhelpful(settings, run)) == [], settings
        for found in violations(run):
            tried[found.rule] = tried.get(found.rule, 0) + bool(list(suggestions(found)))
    assert sum(count > 5 for count in tried.values()) > 25, tried


def test_one_mistake_of_tensor_parallelism_has_one_answer() -> None:
    """Three rules object to TP 3, and each names the sizes that satisfy all three."""
    settings = {TP: 3, "model.num_query_groups": 4}
    run = run_of(config(settings), 3)
    found = [v for v in violations(run) if v.key == TP]
    assert len(found) == 3
    for setting, value in (pair for v in found for pair in suggestions(v)):
        layout = dataclasses.replace(run.layout, tp=value)
        wrong = violations(dataclasses.replace(run, layout=layout))
        assert not any(v.key == setting for v in wrong), value
