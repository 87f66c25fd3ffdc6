"""Megatron's notation of stages: read as megatron-core reads it, or refused with a reason."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from layout_cases import LAYOUT, PP, config
from megatron.core.transformer.enums import LayerType
from megatron.core.transformer.pipeline_parallel_layer_layout import PipelineParallelLayerLayout

from toolkit.megatron.pipeline_layout import LayoutMistake, stages_of, text_of
from toolkit.plan.describe import run_of
from toolkit.plan.layout import violations
from toolkit.plan.shape import stage_layers

LETTERS = {"E": "embedding", "t": "decoder", "m": "mtp", "L": "loss"}
STRICTER = {
    "first-stage-has-the-embedding",  # megatron-core: behind stages of nothing, too
    "last-stage-has-the-loss",
    "every-rank-has-weights",
    "interleaving-needs-a-pipeline",
}
"""Rules that refuse what megatron-core's layout by itself accepts."""


@pytest.mark.parametrize(
    ("layout", "stages"),
    [
        ("Et*3|(tt|)*2,L", ("Ettt", "tt", "tt", "L")),
        ("E,t|,t*2,L", ("Et", "ttL")),
        ("E|(t*2|t|)*2L", ("E", "tt", "t", "tt", "t", "L")),
        ("Et|*3L", ("Et", "", "", "L")),
        ("E(t|)*0t*1,0|L", ("E" + "t" * 10, "L")),
        ([["embedding"], [], [" Decoder", "loss"]], ("E", "", "tL")),
    ],
)
def test_it_is_unrolled(layout: str | list[list[str]], stages: tuple[str, ...]) -> None:
    assert stages_of(layout) == stages


@pytest.mark.parametrize(
    ("layout", "says"),
    [
        ("Et|((t|)*2t|)*2L", "'(' at position 5 of .*: parentheses inside of others"),
        ("Et|(t|L", "'(' at position 4 of .* never closed"),
        ("Et|()*2L", "'(' at position 4 of .* holds nothing"),
        ("Et|t)*2L", r"'\)' at position 5 of .*: no parenthesis was opened"),
        ("*2Et|L", r"'\*' at position 1 of .*: there is nothing before it to repeat"),
        ("E,t*2*3|L", r"'\*' at position 6 of .*: what is repeated already"),
        ("et|tL", "'e' at position 1 of .*; did you mean E?"),
        ("(t|)*200000", "more than 100,000 letters and bars"),
    ],
)
def test_a_mistake_has_a_place(layout: str, says: str) -> None:
    with pytest.raises(LayoutMistake, match=says.replace("'(", r"'\(")):
        stages_of(layout)


def layouts(count: int) -> Iterator[tuple[str, int, int]]:
    """Random notations, pipeline ranks and layers: right ones, and ones with something amiss."""
    dice = random.Random(5)
    for _ in range(count):
        pp = dice.choice([1, 2, 2, 3, 4])
        counts = [dice.randint(0, 4) for _ in range(pp * dice.choice([1, 1, 2, 3]))]
        stages = ["t" * number for number in counts]
        stages[0], stages[-1] = "E" + stages[0], stages[-1] + "L"
        text = text_of(stages)
        if dice.random() < 0.4:
            place = dice.randrange(len(text) + 1)
            amiss = dice.choice(["|", "t", "E", "L", "m", "t*2", "(t|)*2", ",", ")", "x", "*"])
            text = text[:place] + amiss + text[place + dice.randint(0, 1) :]
        yield text, pp, max(1, sum(counts) + dice.choice([0, 0, 0, 0, 1]))


def megatrons(text: str, pp: int, layers: int) -> tuple[tuple[int, ...], ...] | None:
    """The decoder layers of each chunk of each rank; None where megatron-core refuses."""
    try:
        layout = PipelineParallelLayerLayout(text, pp)
        layout.validate_layer_layout(layers, None)
    except (AssertionError, IndexError):
        return None
    return tuple(tuple(c.count(LayerType.decoder) for c in rank) for rank in layout.layout)


def test_any_notation_is_read_as_megatron_reads_it() -> None:
    """Refused by both, or the same layers on every rank."""
    refused = accepted = stricter = 0
    for text, pp, layers in layouts(2000):
        theirs = megatrons(text, pp, layers)
        changes = {PP: pp, LAYOUT: text, "model.num_layers": layers, "global_batch_size": 12}
        run = run_of(config(changes), pp)
        wrong = {v.rule for v in violations(run)}
        if theirs is None:
            assert wrong, text
            refused += 1
        elif wrong:
            assert wrong <= STRICTER or quirk(text), (text, wrong)
            stricter += 1
        else:
            assert stage_layers(run.model, run.layout) == theirs, text
            accepted += 1
    assert refused > 300 and accepted > 500 and stricter > 20


def quirk(text: str) -> bool:
    """What megatron-core's regular expressions make something of: ``t*2*2``, ``(t)*2*2``."""
    try:
        stages_of(text)
    except LayoutMistake as mistake:
        return "repeat" in str(mistake) or "inside of others" in str(mistake)
    return False


def test_the_shortest_notation_reads_back() -> None:
    for text, _, _ in layouts(300):
        try:
            stages = stages_of(text)
        except LayoutMistake:
            continue
        assert stages_of(text_of(stages)) == stages


def test_the_same_layout_as_lists() -> None:
    """A list of names, as megatron-core takes it, is the notation letter by letter."""
    text = "Et*3|t|tt||t|L"
    named = [[LETTERS[c] for c in stage] for stage in stages_of(text)]
    assert stages_of(named) == stages_of(text)
    found = PipelineParallelLayerLayout(named, 2).layout
    assert found == PipelineParallelLayerLayout(text, 2).layout


def test_interleaving_follows_from_the_stages() -> None:
    found = config({PP: 2, LAYOUT: "Et*3|t|tt|tt,L"})
    assert found.parallel.model_chunks == 2
    assert config({PP: 2, LAYOUT: "Et*4|t*4,L"}).parallel.model_chunks == 1
    layout = run_of(found, 2).layout
    assert (layout.vpp, layout.overlap.p2p) == (2, True)
