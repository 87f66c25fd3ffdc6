"""megatron-core refuses what our rules refuse, and builds what they accept; on the CPU.

Process groups are of torch's ``fake`` backend: any number of ranks in one process, and collectives
that do nothing.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import megatron.core
import pytest
import torch
from layout_cases import (
    CASES,
    CP,
    EXPERTS,
    FIRST,
    FULL,
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
from megatron.core import parallel_state
from megatron.core.num_microbatches_calculator import (
    destroy_num_microbatches_calculator,
    get_num_microbatches,
    init_num_microbatches_calculator,
)
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel.mappings import scatter_to_sequence_parallel_region
from megatron.core.transformer.transformer_block import get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset
from megatron.core.utils import get_batch_on_this_cp_rank
from packaging.version import Version
from torch import distributed
from torch.testing._internal.distributed.fake_pg import FakeStore

from toolkit.errors import ToolkitError
from toolkit.megatron import cpu, transformer
from toolkit.megatron import distributed as groups
from toolkit.megatron.batches import Batch, of_rank
from toolkit.megatron.config import ParallelConfig, PretrainConfig
from toolkit.megatron.setup import build_chunks
from toolkit.plan.describe import run_of
from toolkit.plan.layout import is_valid, violations
from toolkit.plan.parameters import stage_layer_numbers
from toolkit.plan.shape import Run, stage_layers

CPU = torch.device("cpu")


@contextlib.contextmanager
def fake_ranks(parallel: ParallelConfig, world_size: int) -> Iterator[None]:
    """Megatron's groups of a layout for rank 0 of a world that isn't there."""
    cpu.install()
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    try:
        groups.initialize_groups(parallel, 10, gloo=False)
        groups.seed_everything(1)
        yield
    finally:
        parallel_state.destroy_model_parallel()
        distributed.destroy_process_group()


def build(settings: PretrainConfig, monkeypatch: pytest.MonkeyPatch) -> TransformerConfig:
    """megatron-core's configuration, as on a GPU but for the kernels."""
    monkeypatch.setattr(transformer, "_refuse_on_cpu", lambda *_: None)
    if settings.precision == "auto":
        settings = settings.model_copy(update={"precision": "bf16"})
    return transformer.transformer_config(settings.model, settings.parallel, settings, CPU)


@pytest.mark.parametrize("case", [c for c in CASES if c.megatron], ids=str)
def test_the_configuration_agrees(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ToolkitError, match=f"megatron-core refuses .*({case.megatron})"):
        build(case.wrong_config, monkeypatch)
    build(case.right_config, monkeypatch)


@pytest.mark.parametrize("case", [c for c in CASES if c.groups], ids=str)
def test_the_process_groups_agree(case: Case) -> None:
    if case.wrong_config.parallel.num_distributed_optimizer_instances > 1:
        pytest.importorskip("einops", reason="megatron-core orders these groups with einops")
    refused = pytest.raises((RuntimeError, AssertionError), match=case.groups)
    with refused, fake_ranks(case.wrong_config.parallel, case.ranks):
        pass
    with fake_ranks(case.right_config.parallel, case.right_ranks or case.ranks):
        assert parallel_state.get_data_parallel_world_size() == case.right_run.layout.dp


@pytest.mark.parametrize("case", [c for c in CASES if c.rule == "batch-divides"], ids=str)
def test_the_batches_agree(case: Case) -> None:
    def count(settings: PretrainConfig) -> int:
        run = run_of(settings, case.ranks)
        sizes = (settings.global_batch_size, settings.micro_batch_size, run.layout.dp)
        init_num_microbatches_calculator(0, None, *sizes, False)
        return get_num_microbatches()

    try:
        with pytest.raises(AssertionError, match="is not divisible by micro batch size"):
            count(case.wrong_config)
        assert count(case.right_config) == case.right_run.layout.num_microbatches
    finally:
        destroy_num_microbatches_calculator()


LATER = {"interleaving-needs-a-pipeline", "interleaving-has-microbatches-in-groups"}


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


def in_groups(changes: Settings, ranks: int, act: Callable[[PretrainConfig], Any]) -> Any:
    settings = config(changes)
    with fake_ranks(settings.parallel, ranks):
        return act(settings)


def run_schedule(settings: PretrainConfig) -> None:
    """One step of the schedule; the sends of rank 0 go nowhere, so only until its first receive."""
    chunks = build_chunks(settings, CPU, 300)
    run = run_of(settings, distributed.get_world_size())
    get_forward_backward_func()(
        forward_step_func=stop_here,
        data_iterator=[iter([])] * len(chunks),
        model=chunks,
        num_microbatches=run.layout.num_microbatches,
        seq_length=settings.sequence,
        micro_batch_size=settings.micro_batch_size,
    )


class ReachedTheModel(Exception):
    """The schedule had nothing against it."""


def stop_here(*_: object) -> None:
    raise ReachedTheModel


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.rule == "interleaving-has-microbatches-in-groups"], ids=str
)
def test_the_interleaved_schedule_agrees(case: Case) -> None:
    with pytest.raises((ValueError, RuntimeError), match="micro-batches"):
        in_groups(case.wrong, case.ranks, run_schedule)
    with pytest.raises(ReachedTheModel):
        in_groups({**case.wrong, **case.right}, case.ranks, run_schedule)


def test_a_remainder_of_a_pipeline_is_no_bubble() -> None:
    """5 microbatches in groups of 3 leave 2, which are as many as the ranks: both accept."""
    changes = {PP: 2, VPP: 2, GROUP: 3, "global_batch_size": 5}
    assert is_valid(run_of(config(changes), 2))
    with pytest.raises(ReachedTheModel):
        in_groups(changes, 2, run_schedule)


def forward(settings: PretrainConfig) -> None:
    """Tokens through rank 0's part of the model."""
    (chunk,) = build_chunks(settings, CPU, 300)
    chunk.train()
    tokens = torch.zeros(1, settings.sequence, dtype=torch.long)
    chunk(input_ids=tokens, position_ids=tokens, attention_mask=None)


def test_uniform_recomputation_agrees() -> None:
    """8 layers in chunks of 3: megatron-core asks for a ninth one; 0.19 makes the last one less."""
    wrong = {**FULL, "recompute_method": "uniform", "recompute_num_layers": 3}
    assert not is_valid(run_of(config(wrong), 8))
    if Version(megatron.core.__version__) < Version("0.19"):
        with pytest.raises(IndexError):
            in_groups(wrong, 8, forward)
    in_groups({**wrong, "recompute_num_layers": 4}, 8, forward)


def test_experts_with_tensor_parallelism_agree() -> None:
    wrong = {EXPERTS: 4, TP: 2}
    assert not is_valid(run_of(config(wrong), 8))
    with pytest.raises(ValueError, match="sequence parallelism"):
        in_groups(wrong, 8, forward)


def test_sinkhorn_agrees() -> None:
    wrong = {
        EXPERTS: 4,
        "model.moe_aux_loss_coeff": 0.01,
        "model.moe_router_load_balancing_type": "sinkhorn",
    }
    assert not is_valid(run_of(config(wrong), 8))
    with pytest.raises(AssertionError, match="does not support aux loss"):
        in_groups(wrong, 8, forward)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({TP: 8, "model.num_query_groups": 1, "model.kv_channels": 2}, "20 is not divisible by 8"),
        ({TP: 4, "model.ffn_hidden_size": 130}, "65 is not divisible by 2"),
        ({EXPERTS: 4, "parallel.expert_tensor_parallel_size": 4, "model.moe_ffn_hidden_size": 30},
         "15 is not divisible by 2"),
        ({EXPERTS: 6, "parallel.expert_model_parallel_size": 4}, ""),
        ({EXPERTS: 4, TP: 2, SP: True, "model.moe_shared_expert_intermediate_size": 33},
         "not divisible by 2"),
        ({EXPERTS: 4, "model.add_bias_linear": True,
          "model.moe_shared_expert_intermediate_size": 32}, "bias is not supported"),
        ({"model.num_query_groups": 3}, "shape .* is invalid"),
        ({EXPERTS: 4, "model.moe_layer_freq": [0, 1, 1]}, "Invalid length of moe_layer_pattern"),
        ({EXPERTS: 4, "model.moe_router_topk": 5}, "out of range"),
        ({EXPERTS: 8, "model.moe_router_num_groups": 4, "model.moe_router_group_topk": 1,
          "model.moe_router_topk": 3}, "out of range"),
    ],
)  # fmt: skip
def test_the_layers_agree(changes: Settings, says: str) -> None:
    """What megatron-core says when it builds, or first uses, the matrices."""
    assert not is_valid(run_of(config(changes), 8))
    with pytest.raises((AssertionError, RuntimeError, ValueError), match=says):
        in_groups(changes, 8, forward)


def test_the_cuts_of_a_sequence_agree() -> None:
    def halve(settings: PretrainConfig) -> int:
        tokens = torch.zeros(settings.sequence // settings.parallel.context_parallel_size, 1, 8)
        return len(scatter_to_sequence_parallel_region(tokens))

    assert in_groups({TP: 4, SP: True, "seq_length": 60}, 8, halve) == 15
    with pytest.raises(AssertionError, match="divisible by tensor parallel size"):
        in_groups({TP: 4, SP: True, "seq_length": 62}, 8, halve)


@pytest.mark.skipif(
    Version(megatron.core.__version__) >= Version("0.19"), reason="0.19 cuts batches on GPUs alone"
)
def test_the_pieces_of_a_sequence_agree() -> None:
    """Two for each context-parallel rank, which are those that our own batches are cut into."""

    def cut(settings: PretrainConfig) -> int:
        tokens = torch.arange(settings.sequence).view(1, -1)
        theirs = get_batch_on_this_cp_rank({"tokens": tokens})["tokens"]
        assert torch.equal(of_rank(Batch(tokens, tokens, tokens, tokens), 0, 4).tokens, theirs)
        return theirs.shape[1]

    assert in_groups({CP: 4, "seq_length": 56}, 8, cut) == 14
    with pytest.raises(RuntimeError, match="invalid for input of size 60"):
        in_groups({CP: 4, "seq_length": 60}, 8, cut)


def runs(count: int) -> Iterator[tuple[Settings, int]]:
    """Random runs over all degrees of parallelism, and their ranks; most of them wrong."""
    dice = random.Random(11)
    for _ in range(count):
        changes: Settings = {
            TP: dice.choice([1, 2, 4, 8]),
            PP: dice.choice([1, 2, 4]),
            VPP: dice.choice([None, None, 2]),
            CP: dice.choice([1, 1, 2, 4]),
            SP: dice.random() < 0.5,
            "seq_length": dice.choice([64, 60, 48]),
            "model.num_query_groups": dice.choice([1, 2, 8]),
            "model.ffn_hidden_size": dice.choice([128, 96, 100]),
            "model.kv_channels": dice.choice([None, 2, 6]),
        }
        if dice.random() < 0.5:
            changes |= {
                EXPERTS: dice.choice([4, 6]),
                "parallel.expert_model_parallel_size": dice.choice([1, 2, 4]),
                "parallel.expert_tensor_parallel_size": dice.choice([None, 1, 2]),
                "model.moe_ffn_hidden_size": dice.choice([64, 30]),
                "model.moe_router_topk": dice.choice([1, 2, 5]),
                "model.add_bias_linear": dice.random() < 0.3,
            }
        yield changes | {"global_batch_size": 64}, dice.choice([8, 16, 32, 24])


def test_what_the_rules_accept_megatron_builds_and_runs() -> None:
    """Rank 0's part of the model takes tokens, wherever no rule objects; experts are only built."""
    built = refused = 0
    for changes, ranks in runs(400):
        settings = config(changes)
        if not is_valid(run_of(settings, ranks)):
            refused += 1
            continue
        try:
            with fake_ranks(settings.parallel, ranks):
                first = build_chunks(settings, CPU, 300)[0].train()
                own = settings.sequence // settings.parallel.context_parallel_size
                tokens = torch.zeros(1, own, dtype=torch.long)
                if settings.model.num_moe_experts is None:
                    first(input_ids=tokens, position_ids=tokens, attention_mask=None)
        except Exception as error:
            raise AssertionError(f"{changes} on {ranks} ranks: {error}") from error
        built += 1
    assert built > 30 and refused > 100
