"""Packed rows in pretraining: examples don't see each other, and the mask decides what counts."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.dot_product_attention import DotProductAttention
from pretrain_runs import (
    GPT2,
    LLAMA,
    QUICK,
    VOCAB,
    layout,
    learnable,
    make_stage,
    make_tokenizer,
    run_stages,
    succeeded,
)

from toolkit.artifacts import publish, sha256
from toolkit.context import StageContext
from toolkit.data.indexed import IndexedWriter
from toolkit.data.pack.bestfit import pack
from toolkit.data.pack.examples import Pair, documents_of
from toolkit.data.pack.rows import mask_prefix, write_rows
from toolkit.errors import DataError
from toolkit.megatron import evaluation, step
from toolkit.megatron.batches import FILLER, Samples, load_batches
from toolkit.megatron.config import ParallelConfig, PretrainConfig
from toolkit.megatron.corpus import open_corpus
from toolkit.megatron.datasets import Datasets, build_datasets
from toolkit.megatron.distributed import process_groups
from toolkit.megatron.guards import LossGuard
from toolkit.megatron.layout import layout_of
from toolkit.megatron.setup import build_training
from toolkit.megatron.step import StepResult, run_schedule, train_step
from toolkit.megatron.train import run

CPU = torch.device("cpu")
FSDP: dict[str, dict[str, Any]] = {
    "torch": {"use_distributed_optimizer": False, "parallel": {"use_torch_fsdp2": True}},
    "megatron": {"parallel": {"use_megatron_fsdp": True}},
}
LENGTH = 32


def config(**settings: object) -> PretrainConfig:
    raw = {"data": "packed", "model": LLAMA, **QUICK, "train_iters": 10, **settings}
    return PretrainConfig.model_validate(raw)


def make_examples(count: int, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Tokens and masks: a prompt that is not trained, and an answer that is."""
    random = np.random.default_rng(seed)
    stream, found, at = learnable(count * LENGTH, seed), [], 0
    for length in random.integers(2, LENGTH - 4, count):
        prompt = int(random.integers(1, length))
        mask = (np.arange(length) >= prompt).astype(np.uint8)
        found.append((stream[at : at + length], mask))
        at += length
    return found


def write_packed(prefix: Path, examples: list[tuple[np.ndarray, np.ndarray]]) -> Path:
    """The rows of some examples, packed."""
    lengths = np.array([len(tokens) for tokens, _ in examples], np.int64)
    prefix.parent.mkdir(parents=True, exist_ok=True)
    raw, raw_mask = prefix.with_name("raw"), prefix.with_name("raw_mask")
    with IndexedWriter(raw, VOCAB) as writer:
        writer.write(np.concatenate([tokens for tokens, _ in examples]), lengths)
    with IndexedWriter(raw_mask, 2, np.uint8) as writer:
        writer.write(np.concatenate([mask for _, mask in examples]), lengths)
    found = documents_of([Pair(raw, raw_mask)])
    write_rows(found, pack(lengths, LENGTH, 0), LENGTH, 1, prefix, VOCAB, lambda rows: None)
    return prefix


def make_packed(folder: Path, parts: dict[str, int], seq_length: int = LENGTH, **info: Any) -> Path:
    """A dataset artifact of packed rows; ``parts`` has the number of examples of each prefix."""
    built = folder.with_name(f"{folder.name}.building")
    tokenizer = make_tokenizer(built / "tokenizer")
    for seed, (name, count) in enumerate(parts.items()):
        write_packed(built / name, make_examples(count, seed))
        for left in built.glob("**/raw*"):
            left.unlink()
    publish(
        built,
        folder,
        artifact_type="dataset",
        stage="packed",
        kind="pack",
        fingerprint="test",
        info={
            "prefixes": list(parts),
            "masks": [str(mask_prefix(Path(name))) for name in parts],
            "vocab_size": VOCAB,
            "tokenizer_sha256": sha256(tokenizer / "tokenizer.json"),
            "packing": {"seq_length": seq_length},
            **info,
        },
    )
    return folder


def build(folder: Path, work: Path, **settings: object) -> Datasets:
    settings = {"data": str(folder), **settings}
    context = StageContext("base", "pretrain", work, "test")
    chosen = config(**settings)
    with process_groups(ParallelConfig()):
        return build_datasets(open_corpus(chosen, context), chosen, 1234, work)


def rows(dataset: Any, count: int) -> list[tuple[int, ...]]:
    return [tuple(dataset[n]["tokens"].tolist()) for n in range(count)]


def test_a_row_has_the_examples_that_went_in(tmp_path: Path) -> None:
    examples = make_examples(60)
    datasets = build(make_packed(tmp_path / "packed", {"text_document": 60}), tmp_path / "work",
                     split="1")  # fmt: skip
    assert datasets.valid is None and datasets.parts["split_by"] == "rows"
    count = datasets.parts["tokens"]["train"] // LENGTH
    found = []
    for n in range(count):
        sample = datasets.train[n]
        assert sum(sample["lengths"]) == LENGTH
        for start in (sample["position_ids"] == 0).nonzero().flatten().tolist():
            stop = start + 1
            while stop < LENGTH and sample["position_ids"][stop] > 0:
                stop += 1
            mask = sample["loss_mask"][start:stop].tolist()
            assert mask[-1] == 0
            found.append((sample["tokens"][start:stop].tolist(), mask[:-1]))
            if stop > start + 1:
                assert torch.equal(
                    sample["labels"][start : stop - 1], sample["tokens"][start + 1 : stop]
                )
    trained = sorted((tokens, mask) for tokens, mask in found if any(mask))
    assert trained == sorted((t.tolist(), m[1:].tolist()) for t, m in examples)


def test_every_epoch_has_every_row_once_in_another_order(tmp_path: Path) -> None:
    folder = make_packed(tmp_path / "packed", {"text_document": 60})
    datasets = build(folder, tmp_path / "work", split="1", train_iters=20)
    count = datasets.parts["tokens"]["train"] // LENGTH
    drawn = rows(datasets.train, 2 * count)
    first, second = drawn[:count], drawn[count:]
    assert len(set(first)) == count and sorted(first) == sorted(second) and first != second
    again = build(folder, tmp_path / "again", split="1", train_iters=20)
    assert rows(again.train, 2 * count) == drawn
    assert len(datasets.train) == 20 * QUICK["global_batch_size"]


def test_held_out_rows_are_not_trained_on(tmp_path: Path) -> None:
    folder = make_packed(tmp_path / "packed", {"text_document": 200})
    datasets = build(folder, tmp_path / "work", split="80,20", train_iters=40)
    held_out = set(rows(datasets.valid, len(datasets.valid)))
    count = {part: tokens // LENGTH for part, tokens in datasets.parts["tokens"].items()}
    assert len(held_out) == len(datasets.valid) == count["valid"] > 10
    trained = set(rows(datasets.train, len(datasets.train)))
    assert len(trained) == count["train"] and not trained & held_out


def test_a_split_dataset_gives_each_part_its_own_rows(tmp_path: Path) -> None:
    parts = {"train/text_document": 100, "valid/text_document": 40, "test/text_document": 40}
    splits = {name.partition("/")[0]: [name] for name in parts}
    folder = make_packed(tmp_path / "packed", parts, splits=splits)
    datasets = build(folder, tmp_path / "work", train_iters=40)
    assert datasets.parts["split_by"] == "dataset"
    held_out = {t for row in rows(datasets.valid, len(datasets.valid)) for t in [row]}
    own = {tuple(row) for row in np.memmap(
        folder / "valid" / "text_document.bin", np.uint16, mode="r").reshape(-1, LENGTH).tolist()
    }  # fmt: skip
    assert held_out == own
    with pytest.raises(DataError, match=r"split '9,1' is set, and the dataset is split already"):
        build(folder, tmp_path / "other", split="9,1")


def attend_to_own_example(
    self: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    packed_seq_params: PackedSeqParams,
    **options: Any,
) -> torch.Tensor:
    """What TransformerEngine's attention does with (tokens, heads, channels), in plain torch."""
    assert attention_mask is None and packed_seq_params.qkv_format == "thd"
    groups = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
    bounds = packed_seq_params.cu_seqlens_q.tolist()
    assert bounds[0] == 0 and bounds[-1] == len(query)
    found = []
    for first, last in pairwise(bounds):
        assert last - first <= packed_seq_params.max_seqlen_q
        own = (t[first:last].transpose(0, 1) for t in (query, key, value))
        attended = torch.nn.functional.scaled_dot_product_attention(*own, is_causal=True)
        found.append(attended.transpose(0, 1))
    return torch.cat(found).flatten(1)


@pytest.mark.parametrize("joined", [False, True], ids=["dense", "thd"])
@pytest.mark.parametrize("model", [LLAMA, GPT2], ids=["rope", "learned"])
def test_the_loss_of_packed_rows_is_that_of_the_examples_alone(
    tmp_path: Path, model: dict[str, Any], joined: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a dense mask; and as on a GPU, all but the kernel: one long row and its bounds."""
    folder = make_packed(tmp_path / "packed", {"text_document": 80})
    settings = config(data=str(folder), model=model, split="1", micro_batch_size=4)
    corpus = open_corpus(settings, StageContext("base", "pretrain", tmp_path / "work", "test"))
    with process_groups(ParallelConfig()):
        training = build_training(settings, layout_of(settings, 1), CPU, VOCAB, 1234, packed=True)
        samples = build_datasets(corpus, settings, 1234, tmp_path / "work").train
        indices = [[0, 1, 2, 3], [4, 5, 6, 7]]
        batches = load_batches(Samples(samples, VOCAB), indices, CPU)
        with torch.no_grad():
            with monkeypatch.context() as patch:
                if joined:
                    patch.setattr(step, "joins_rows", lambda device: True)
                    patch.setattr(DotProductAttention, "forward", attend_to_own_example)
                packed = run_schedule(training, [batches], forward_only=True)
            alone = sum(
                (losses_alone(training.models[0], samples[n]) for n in range(8)),
                torch.zeros(2, dtype=torch.float64),
            )
    assert packed[1] == alone[1] > 50
    assert float(packed[0] / packed[1]) == pytest.approx(float(alone[0] / alone[1]), rel=1e-6)


def losses_alone(model: Any, sample: dict[str, torch.Tensor]) -> torch.Tensor:
    """Sum of losses and number of tokens, each example put through the model by itself."""
    total, at = torch.zeros(2, dtype=torch.float64), 0
    for length in sample["lengths"].tolist():
        own = {name: sample[name][at : at + length][None] for name in ("tokens", "labels")}
        mask = sample["loss_mask"][at : at + length]
        losses = model(
            input_ids=own["tokens"],
            position_ids=torch.arange(length)[None],
            attention_mask=None,
            labels=own["labels"],
        )
        total += torch.stack([(losses[0].double() * mask).sum(), mask.sum().double()])
        at += length
    return total


def test_trained_tokens_weigh_the_same_whatever_the_microbatches(tmp_path: Path) -> None:
    """Rows differ in how many of their tokens are trained: means of means would differ too."""
    folder = make_packed(tmp_path / "packed", {"text_document": 80})

    def first_step(micro_batch_size: int) -> StepResult:
        settings = config(data=str(folder), split="1", micro_batch_size=micro_batch_size)
        corpus = open_corpus(settings, StageContext("base", "pretrain", tmp_path / "work", "test"))
        with process_groups(ParallelConfig()):
            layout = layout_of(settings, 1)
            training = build_training(settings, layout, CPU, VOCAB, 1234, packed=True)
            samples = build_datasets(corpus, settings, 1234, tmp_path / "work").train
            indices = training.sharding.microbatches(0, settings.global_batch_size)
            batches = load_batches(Samples(samples, VOCAB), indices, CPU)
            return train_step(training, [batches], LossGuard(settings), False)

    whole, cut = first_step(8), first_step(1)
    assert cut.loss == pytest.approx(whole.loss, rel=1e-6)
    assert cut.grad_norm == pytest.approx(whole.grad_norm, rel=1e-5)


def test_a_filler_of_packed_rows_counts_for_nothing(tmp_path: Path) -> None:
    datasets = build(make_packed(tmp_path / "packed", {"text_document": 60}), tmp_path / "work")
    (batch,) = load_batches(Samples(datasets.train, VOCAB), [[3, FILLER]], CPU)
    assert batch.loss_mask[0].sum() > 0 and batch.loss_mask[1].sum() == 0
    assert batch.cu_seqlens is not None and batch.cu_seqlens.dtype == torch.int32
    assert batch.cu_seqlens[0] == 0 and batch.cu_seqlens[-1] == 2 * LENGTH


def test_held_out_rows_without_a_trained_token_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    none = torch.zeros(2, dtype=torch.float64)
    monkeypatch.setattr(evaluation, "run_schedule", lambda *_, **__: none)
    training: Any = SimpleNamespace(chunks=[], config=config(), device=CPU)
    with (
        process_groups(ParallelConfig()),
        pytest.raises(DataError, match="held-out rows have no token to predict"),
    ):
        evaluation.evaluate(training, evaluation.HeldOut(None, 1))


def test_rows_of_another_length_are_refused(tmp_path: Path) -> None:
    folder = make_packed(tmp_path / "packed", {"text_document": 60})
    with pytest.raises(DataError, match=r"rows of 32 tokens, and seq_length is 16") as caught:
        build(folder, tmp_path / "work", seq_length=16)
    assert "seq_length: 32" in str(caught.value)
    with pytest.raises(DataError, match="context_parallel_size 2 cuts every row"):
        build(folder, tmp_path / "cut", parallel={"context_parallel_size": 2})
    lying = make_packed(tmp_path / "lying", {"text_document": 60}, seq_length=16)
    with pytest.raises(DataError, match="not packed into rows of 16 tokens"):
        build(lying, tmp_path / "work2", seq_length=16)


def test_a_mask_of_other_rows_is_refused(tmp_path: Path) -> None:
    folder = make_packed(tmp_path / "packed", {"a": 60, "b": 60})
    for suffix in ("bin", "idx"):
        (folder / f"b_loss_mask.{suffix}").rename(folder / f"a_loss_mask.{suffix}")
        (folder / f"b_loss_mask.{suffix}").write_bytes(
            (folder / f"a_loss_mask.{suffix}").read_bytes()
        )
    with pytest.raises(DataError, match="the loss mask is not of these rows"):
        build(folder, tmp_path / "work")


def test_training_on_packed_rows_learns(
    tmp_path: Path, stage_context: Callable[..., StageContext]
) -> None:
    folder = make_packed(tmp_path / "packed", {"text_document": 400})
    context = stage_context("base", "pretrain", packed=folder)
    published = run(config(train_iters=30, lr=5e-3, split="90,10", eval_interval=30), context)
    assert published is not None
    info = published.info
    assert info["validation_loss"] < 0.9 * info["untrained_validation_loss"]


@pytest.mark.slow
def test_every_layout_trains_the_same_on_packed_rows(tmp_path: Path) -> None:
    """Every pipeline stage keeps examples apart, and data-parallel ranks weigh their tokens."""
    folder = make_packed(tmp_path / "packed", {"text_document": 200})
    settings = {"train_iters": 4, "parallel": layout(pipeline=2, virtual=2)}
    alone = make_stage(tmp_path / "alone", folder, train_iters=4)
    cut = make_stage(tmp_path / "cut", folder, **settings)
    apart = make_stage(tmp_path / "apart", folder, train_iters=4, resources={"ntasks_per_node": 2})
    ranks = {"train_iters": 4, "resources": {"ntasks_per_node": 2}}
    sharded = [
        make_stage(tmp_path / name, folder, **ranks, **settings) for name, settings in FSDP.items()
    ]
    succeeded(run_stages([alone]), alone)
    succeeded(run_stages([cut, apart, *sharded]), cut)
    for other in (cut, apart, *sharded):
        assert other.rows("loss") == pytest.approx(alone.rows("loss"), rel=1e-5)
        assert other.rows("grad_norm") == pytest.approx(alone.rows("grad_norm"), rel=1e-4)
