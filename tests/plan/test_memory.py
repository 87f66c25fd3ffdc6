"""Memory: against Megatron-LM's tool, against real ranks' tensors, and term by term."""

import random
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
from plan_shapes import FP8, preset

from toolkit.megatron.config import PretrainConfig
from toolkit.plan.activations import layer_bytes
from toolkit.plan.describe import run_of
from toolkit.plan.layout import is_valid
from toolkit.plan.memory import StageMemory, largest, logits_bytes, memory_by_stage, with_padding
from toolkit.plan.schedule import chunks_in_flight
from toolkit.plan.shape import Fusions, Layout, ModelShape, Precision, Recompute

MIB = 2**20
SELECTIVE = Recompute(granularity="selective")


def cut(world_size: int, seq_length: int = 8192, **settings: Any) -> Layout:
    sequence_parallel = settings.get("tp", 1) > 1
    return Layout(
        world_size=world_size,
        seq_length=seq_length,
        sequence_parallel=sequence_parallel,
        recompute=SELECTIVE,
        **settings,
    )


# (model, layout, weights and optimizer, activations), the last two in MiB: what
# tools/report_theoretical_memory.py of Megatron-LM d98e8a64 says; benchmarks/memory.py runs it.
TOOL = [
    ("gpt3-175b", cut(1024, 2048, tp=8, pp=16, global_batch_size=1536), 10275, 9840),
    ("gpt3-175b", cut(512, 2048, tp=8, pp=8, vpp=3, global_batch_size=2048), 19997, 12679),
    ("llama-3-8b", cut(8, tp=2, global_batch_size=128), 34463, 18468),
    ("llama-3-8b", cut(16, tp=4, pp=2, global_batch_size=128), 11489, 8208),
    ("llama-3-70b", cut(64, tp=4, pp=8, vpp=5, global_batch_size=256), 27488, 48279),
    ("llama-3-70b", cut(128, tp=8, pp=4, global_batch_size=256), 19490, 20512),
    ("llama-3.1-405b", cut(1008, tp=8, pp=9, global_batch_size=1540), 38201, 62640),
    ("mixtral-8x7b", cut(64, 4096, ep=8, pp=2, etp=1, global_batch_size=256), 29073, None),
    ("mixtral-8x7b", cut(64, 4096, tp=2, ep=4, etp=1, global_batch_size=256), 77461, None),
]
"""It takes experts' activations for those of a dense model: None."""


def first_stage(name: str, layout: Layout) -> StageMemory:
    dropout = 0.1 if name == "gpt3-175b" else 0.0  # Megatron-LM's default, which the tool has
    model = preset(name, hidden_dropout=dropout)
    return memory_by_stage(model, layout, Precision(), [0])[0]


def state(found: StageMemory) -> float:
    return found.weights + found.gradients + found.optimizer


@pytest.mark.parametrize(("name", "layout", "weights", "activations"), TOOL)
def test_within_5_per_cent_of_megatrons_tool(
    name: str, layout: Layout, weights: float, activations: float | None
) -> None:
    found = first_stage(name, layout)
    assert state(found) / MIB == pytest.approx(weights, rel=0.02)
    if activations is not None:
        kept = found.activations + (found.temporary if layout.pp == 1 else 0)
        assert (state(found) + kept) / MIB == pytest.approx(weights + activations, rel=0.05)


def test_what_the_tool_does_not_know_of_context_parallelism() -> None:
    """It shards the optimizer's state over DP alone, and keeps whole sequences' activations."""
    whole = cut(1008, tp=8, pp=9, global_batch_size=1540)
    without, halved = (first_stage("llama-3.1-405b", replace(whole, cp=cp)) for cp in (1, 2))
    assert halved.optimizer == without.optimizer  # over 7 x 2 ranks, as over 14
    assert halved.activations == pytest.approx(without.activations / 2)
    theirs = 42976  # MiB: 12 bytes over 7 ranks
    assert state(halved) / MIB == pytest.approx(theirs * 0.889, rel=0.01)


GPT = ModelShape(
    num_layers=4,
    hidden_size=1024,
    ffn_hidden_size=4096,
    num_attention_heads=16,
    num_query_groups=16,
    kv_channels=64,
    max_position_embeddings=2048,
    vocab_size=1024,
    gated_linear_unit=False,
    hidden_dropout=0.1,
)


def test_a_layer_of_gpt_keeps_34_bytes_a_token_and_hidden_unit() -> None:
    """Korthikanti et al., table 2, with selective recomputation; and one number a row and head."""
    layout = Layout(seq_length=2048)
    statistics = 4 * 16 * 2048
    kept = layer_bytes(GPT, layout, Precision(), moe=False) - statistics
    assert kept == 34 * 2048 * 1024
    sharded = Layout(tp=8, seq_length=2048)
    kept = layer_bytes(GPT, sharded, Precision(), moe=False) - statistics / 8
    assert kept == (10 + 24 / 8) * 2048 * 1024
    both = replace(sharded, sequence_parallel=True)
    kept = layer_bytes(GPT, both, Precision(), moe=False) - statistics / 8
    assert kept == 34 / 8 * 2048 * 1024


def test_unfused_attention_keeps_its_scores_unless_they_are_recomputed() -> None:
    """Korthikanti et al. 2022, table 2: s b h (34 + 5 a s / h) at TP 1, and 34 when recomputed."""
    gpt = preset("gpt3-175b", hidden_dropout=0.1, attention_dropout=0.1)
    layout = Layout(seq_length=2048, fusions=Fusions(attention_backend="unfused"))
    whole = layer_bytes(gpt, layout, Precision(), moe=False)
    unit = 2048 * gpt.hidden_size
    scores = 5 * gpt.num_attention_heads * 2048 / gpt.hidden_size
    assert whole / unit == pytest.approx(34 + scores, rel=0.02)
    again = replace(layout, recompute=SELECTIVE)
    assert layer_bytes(gpt, again, Precision(), moe=False) / unit == pytest.approx(34, rel=0.02)
    cut = replace(layout, tp=8, sequence_parallel=True)
    assert layer_bytes(gpt, cut, Precision(), moe=False) == pytest.approx(whole / 8, rel=0.01)
    fused = memory_by_stage(gpt, replace(again, fusions=Fusions()), Precision())[0].temporary
    assert memory_by_stage(gpt, again, Precision())[0].temporary > fused


def test_a_loss_in_the_logits_has_no_copy_in_fp32() -> None:
    model = preset("llama-3-8b")
    layout = Layout(seq_length=8192, micro_batch_size=2)
    copy = logits_bytes(model, layout, Precision())
    inside = Fusions(cross_entropy=True, cross_entropy_impl="te")
    saved = copy - logits_bytes(model, replace(layout, fusions=inside), Precision())
    assert saved == 4 * 2 * 8192 * 128256
    apart = replace(layout, fusions=Fusions(cross_entropy=False))
    assert logits_bytes(model, apart, Precision()) == copy


def test_less_is_kept_the_more_is_recomputed() -> None:
    def kept(recompute: Recompute) -> float:
        layout = Layout(seq_length=2048, recompute=recompute)
        return memory_by_stage(GPT, layout, Precision())[0].activations

    steps = [
        Recompute(),
        Recompute("selective", modules=("layernorm",)),
        Recompute("selective", modules=("layernorm", "mlp")),
        Recompute("full", "block", 3),
        Recompute("full", "uniform", 1),
        Recompute("full", "uniform", 4),
    ]
    found = [kept(recompute) for recompute in steps]
    assert found == sorted(found, reverse=True)
    assert len(set(found)) == len(found)
    ids_and_mask = (8 + 1024) * 2048
    assert found[-1] == 2 * 1024 * 2048 + ids_and_mask


@pytest.mark.parametrize(
    ("settings", "stage", "chunks"),
    [
        ({"pp": 1, "global_batch_size": 8}, 0, 1),
        ({"pp": 4, "global_batch_size": 8}, 0, 4),
        ({"pp": 4, "global_batch_size": 8}, 3, 1),
        ({"pp": 4, "global_batch_size": 2}, 0, 2),
        ({"pp": 4, "vpp": 2, "global_batch_size": 8}, 0, 11),  # 2 x 3 + 1 x 4, and one
        ({"pp": 4, "vpp": 2, "global_batch_size": 8}, 3, 5),
        ({"pp": 4, "vpp": 2, "global_batch_size": 4}, 0, 8),  # there are no more
    ],
)
def test_microbatches_in_flight(settings: dict[str, int], stage: int, chunks: int) -> None:
    layout = Layout(world_size=settings["pp"], **settings)  # type: ignore[arg-type]
    assert chunks_in_flight(layout, stage) == chunks


def test_fp8_keeps_inputs_in_a_byte_and_weights_once() -> None:
    model = preset("llama-3-8b")
    layout = Layout(world_size=8, seq_length=8192, global_batch_size=8)
    wide = memory_by_stage(model, layout, Precision())[0]
    copied = memory_by_stage(model, layout, Precision(fp8="hybrid"))[0]
    alone = memory_by_stage(model, layout, FP8)[0]
    assert copied.activations < wide.activations
    linear = 2 * (8_030_261_248 - 2 * 128256 * 4096 - 65 * 4096)
    assert copied.temporary - alone.temporary == linear
    assert alone.gradients == wide.gradients / 2


def test_fsdp_shards_what_it_says() -> None:
    model = preset("llama-3-8b")
    plain = Layout(world_size=8, seq_length=2048, global_batch_size=8)
    whole = memory_by_stage(model, plain, Precision())[0]
    for sharding, sharded in (
        ("optim", ("optimizer",)),
        ("optim_grads", ("optimizer", "gradients")),
        ("optim_grads_params", ("optimizer", "gradients", "weights")),
    ):
        layout = replace(plain, fsdp="megatron", sharding=sharding)
        found = memory_by_stage(model, layout, Precision())[0]
        assert found.optimizer == whole.optimizer
        assert found.gradients == whole.gradients / (8 if "gradients" in sharded else 1)
        assert found.weights == whole.weights / (8 if "weights" in sharded else 1)


def test_the_fullest_stage_is_found() -> None:
    layout = cut(64, tp=4, pp=8, vpp=5, global_batch_size=256)
    stages = memory_by_stage(preset("llama-3-70b"), layout, Precision())
    assert [s.stage for s in stages] == list(range(8))
    assert largest(stages).stage == 0
    assert sum(s.parameters for s in stages) * 4 > 70_553_706_496


# On real ranks -----------------------------------------------------------------------------------

MODEL = {
    "num_layers": 4,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "ffn_hidden_size": 96,
    "max_position_embeddings": 32,
}
EXPERTS = {"num_moe_experts": 4, "moe_router_topk": 2, "moe_ffn_hidden_size": 40}
GPT2 = {
    "position_embedding_type": "learned_absolute",
    "normalization": "LayerNorm",
    "gated_linear_unit": False,
    "add_bias_linear": True,
    "untie_embeddings_and_output_weights": False,
}


@dataclass(frozen=True)
class Case:
    """A small layout: names are short for those of ``ParallelConfig``."""

    ranks: int
    tp: int = 1
    pp: int = 1
    vpp: int | None = None
    ep: int = 1
    etp: int | None = None
    model: tuple[tuple[str, Any], ...] = ()
    sharded: bool = True
    ends: tuple[tuple[str, Any], ...] = ()
    """How uneven stages are said."""

    def config(self) -> PretrainConfig:
        return PretrainConfig.model_validate(
            {
                "data": "none",
                "train_iters": 2,
                "micro_batch_size": 1,
                "global_batch_size": 48,
                "precision": "fp32",
                "use_distributed_optimizer": self.sharded,
                "model": MODEL | dict(self.model),
                "parallel": {
                    "tensor_model_parallel_size": self.tp,
                    "pipeline_model_parallel_size": self.pp,
                    "virtual_pipeline_model_parallel_size": self.vpp,
                    "expert_model_parallel_size": self.ep,
                    "expert_tensor_parallel_size": self.etp,
                    **dict(self.ends),
                    "sequence_parallel": self.tp > 1 and "num_moe_experts" in dict(self.model),
                },
                "resources": {"ntasks_per_node": self.ranks},
            }
        )


def model(**settings: Any) -> tuple[tuple[str, Any], ...]:
    return tuple(settings.items())


CASES = [
    Case(1),
    Case(4, sharded=False, model=model(num_query_groups=2)),
    Case(4, tp=2, model=model(**GPT2)),
    Case(8, tp=2, pp=2, model=model(num_query_groups=1, untie_embeddings_and_output_weights=False)),
    Case(8, pp=2, vpp=2, model=model(kv_channels=24, qk_layernorm=True)),
    Case(4, tp=4, model=model(num_query_groups=2, add_qkv_bias=True)),
    Case(12, pp=4, model=model(make_vocab_size_divisible_by=1)),
    Case(4, ep=2, model=model(**EXPERTS)),
    Case(8, tp=2, ep=2, etp=1, model=model(**EXPERTS)),
    Case(8, ep=4, pp=2, model=model(**EXPERTS, moe_layer_freq=[0, 1, 1, 0])),
    Case(4, pp=4, ends=model(pipeline_model_parallel_layout="E|t|t*3|L"), model=model(**GPT2)),
    Case(
        4,
        pp=2,
        ep=2,
        ends=model(pipeline_model_parallel_layout="Et|tt||t|t|L"),
        model=model(**EXPERTS, num_layers=5, moe_layer_freq=[0, 1, 1, 0, 1]),
    ),
    Case(
        4,
        pp=4,
        ends=model(num_layers_in_first_pipeline_stage=1, num_layers_in_last_pipeline_stage=3),
        model=model(num_layers=8),
    ),
    Case(
        4,
        pp=2,
        vpp=3,
        ends=model(
            account_for_embedding_in_pipeline_split=True, account_for_loss_in_pipeline_split=True
        ),
    ),
]


SEED = 2405


def at_random(count: int) -> list[Case]:
    """Layouts that nobody chose: drawn from all that there is, kept where the rules take them, and
    of each way to cut the model no more than one."""
    draw = random.Random(SEED)
    kinds = (
        model(),
        model(**GPT2),
        model(num_query_groups=2, untie_embeddings_and_output_weights=False),
        model(kv_channels=24, qk_layernorm=True, make_vocab_size_divisible_by=1),
        model(num_query_groups=1, add_qkv_bias=True, num_layers=6),
        model(**EXPERTS),
        model(**EXPERTS, moe_layer_freq=[1, 0, 0, 1], moe_shared_expert_intermediate_size=56),
    )
    found: dict[tuple[int, ...], Case] = {}
    while len(found) < count:
        tp, pp, vpp = draw.choice((1, 2, 4)), draw.choice((1, 2, 3, 4)), draw.choice((None, 2))
        ranks, kind = tp * pp * draw.choice((1, 2, 3)), draw.choice(kinds)
        experts = "num_moe_experts" in dict(kind)
        ep, etp = (draw.choice((1, 2, 4)), draw.choice((None, 1))) if experts else (1, None)
        case = Case(ranks, tp, pp, vpp, ep, etp, model=kind, sharded=draw.random() < 0.8)
        cut = (tp, pp, vpp or 1, ep, etp or 0)
        if cut in found or cut == (1, 1, 1, 1, 0) or ranks % ((etp or tp) * ep * pp):
            continue
        if is_valid(run_of(case.config(), ranks, 1000)):
            found[cut] = case
    return list(found.values())


RANDOM = at_random(10)


def test_the_random_layouts_are_of_many_kinds() -> None:
    for degree in ("tp", "pp", "vpp", "ep", "sharded"):
        assert len({getattr(case, degree) for case in RANDOM}) > 1, degree
    assert len({str(case.model) for case in RANDOM}) > 3


@contextmanager
def rank_of(config: PretrainConfig, rank: int, world_size: int) -> Iterator[None]:
    """This process as one of a world whose collectives do nothing."""
    from megatron.core import parallel_state
    from torch import distributed
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from toolkit.megatron.distributed import initialize_groups, seed_everything

    distributed.init_process_group("fake", rank=rank, world_size=world_size, store=FakeStore())
    try:
        initialize_groups(config.parallel, 1)
        seed_everything(1)
        yield
    finally:
        parallel_state.destroy_model_parallel()
        distributed.destroy_process_group()


@dataclass
class Bytes:
    """Of one rank's tensors."""

    weights: int = 0
    padded: int = 0
    """The buffers that the distributed optimizer keeps the weights in."""
    added_up: int = 0
    """Gradients, tensor by tensor."""
    gradients: int = 0
    """The buffers that they are in."""
    optimizer: int = 0
    """Adam's two states."""


def built(config: PretrainConfig, rank: int, world_size: int) -> tuple[int, Bytes]:
    """The pipeline stage, and the bytes of the tensors that training makes on this rank."""
    import torch
    from megatron.core import parallel_state

    from toolkit.megatron.layout import layout_of
    from toolkit.megatron.setup import build_training

    found = Bytes()
    with rank_of(config, rank, world_size):
        layout = layout_of(config, world_size)
        training = build_training(config, layout, torch.device("cpu"), 1000, 1)
        for chunk in training.chunks:
            for buffer in chunk.buffers + chunk.expert_parallel_buffers:
                found.gradients += buffer.grad_data.nbytes
                found.padded += 0 if buffer.param_data is None else buffer.param_data.nbytes
            for weight in chunk.parameters():
                found.weights += weight.nbytes
                found.added_up += weight.main_grad.nbytes
        for part in training.optimizer.chained_optimizers:
            for states in part.optimizer.state.values():
                found.optimizer += states["exp_avg"].nbytes + states["exp_avg_sq"].nbytes
        return parallel_state.get_pipeline_model_parallel_rank(), found


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every further group is one whose collectives do nothing, too."""
    from torch import distributed

    from toolkit.megatron import cpu

    cpu.install()
    original = distributed.new_group

    def new_group(*args: Any, **settings: Any) -> Any:
        return original(*args, **(settings | {"backend": "fake"}))

    monkeypatch.setattr(distributed, "new_group", new_group)


@pytest.mark.slow
@pytest.mark.parametrize("case", [*CASES, *RANDOM], ids=str)
def test_exactly_the_tensors_of_real_ranks(case: Case, no_network: None) -> None:
    """Of every rank the weights and gradients, tensor by tensor; of the fullest one of a stage all
    there is, with the padding of the buffers."""
    config = case.config()
    run = run_of(config, case.ranks, 1000)
    whole = (run.model, run.layout, run.precision)
    planned = memory_by_stage(*whole)
    found: dict[int, list[Bytes]] = defaultdict(list)
    for rank in range(case.ranks):
        stage, actual = built(config, rank, case.ranks)
        assert planned[stage].weights == planned[stage].gradients == actual.weights
        assert planned[stage].parameters * 4 == actual.added_up
        found[stage].append(actual)
    assert set(found) == set(range(case.pp))
    for stage, ranks in found.items():
        padded = with_padding(planned[stage], *whole)
        kept = sum(actual.optimizer for actual in ranks)
        assert planned[stage].optimizer * len(ranks) == pytest.approx(kept, rel=1e-12)
        assert padded.optimizer == max(actual.optimizer for actual in ranks)
        assert padded.gradients == ranks[0].gradients
        assert padded.weights == (ranks[0].padded or ranks[0].weights)
