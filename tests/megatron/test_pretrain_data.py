"""Samples: what is held out, in which order batches come, and that no token is lost or leaked."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pretrain_runs import LLAMA, QUICK, VOCAB, learnable, make_dataset, make_tokenizer, write_pair

from toolkit.context import StageContext
from toolkit.megatron.batches import FILLER, Samples, Sharding, load_batches
from toolkit.megatron.config import ParallelConfig, PretrainConfig
from toolkit.megatron.corpus import Corpus, open_corpus
from toolkit.megatron.datasets import Datasets, build_datasets
from toolkit.megatron.distributed import process_groups
from toolkit.megatron.train import run

CPU = torch.device("cpu")
LENGTH = LLAMA["max_position_embeddings"]


def config(**settings: object) -> PretrainConfig:
    raw = {"data": "corpus", "model": LLAMA, **QUICK, "train_iters": 10, **settings}
    return PretrainConfig.model_validate(raw)


def corpus(tmp_path: Path, stream: np.ndarray, documents: int, pairs: int = 1) -> Corpus:
    parts = np.array_split(stream, pairs)
    prefixes = [
        write_pair(tmp_path / f"part{n}" / "text_document", part, documents)
        for n, part in enumerate(parts)
    ]
    return Corpus(tuple(prefixes), VOCAB, make_tokenizer(tmp_path / "tokenizer"))


def build(source: Corpus, work: Path, **settings: object) -> Datasets:
    with process_groups(ParallelConfig()):
        return build_datasets(source, config(**settings), 1234, work)


def held_out_tokens(datasets: Datasets) -> list[int]:
    """The labels that count, sample by sample."""
    found: list[int] = []
    for index in range(len(datasets.valid)):
        sample = datasets.valid[index]
        found += sample["labels"][sample["loss_mask"].bool()].tolist()
    return found


def trained_tokens(datasets: Datasets) -> set[int]:
    return {int(t) for n in range(len(datasets.train)) for t in datasets.train[n]["tokens"]}


@pytest.mark.parametrize(("documents", "by"), [(1000, "documents"), (1, "tokens")])
def test_every_held_out_token_is_a_label_once(tmp_path: Path, documents: int, by: str) -> None:
    stream = np.arange(10_000) % 250
    stream[9690:9990] = 250 + np.arange(300) % 50  # found in the held-out part alone
    datasets = build(corpus(tmp_path, stream, documents), tmp_path / "work", train_iters=200)
    assert datasets.parts == {"split_by": by, "tokens": {"train": 9690, "valid": 300}}
    found = held_out_tokens(datasets)
    assert len(found) == 299  # the first token of all has nothing before it
    assert set(found) == set(range(250, 300))
    assert trained_tokens(datasets) == set(range(250))


def test_a_document_that_is_cut_keeps_its_order(tmp_path: Path) -> None:
    stream = learnable(5_000)
    datasets = build(corpus(tmp_path, stream, 1), tmp_path / "work", split="900,100")
    found = held_out_tokens(datasets)
    samples = [found[n : n + LENGTH] for n in range(0, len(found), LENGTH)]
    original = [stream[4501 + n : 4501 + n + LENGTH].tolist() for n in range(0, 499, LENGTH)]
    assert sorted(samples) == sorted(original)


def test_several_pairs_are_mixed_by_their_size(tmp_path: Path) -> None:
    small, large = np.zeros(4_000, np.int64), np.ones(12_000, np.int64)
    prefixes = (
        write_pair(tmp_path / "a" / "text_document", small, 40),
        write_pair(tmp_path / "b" / "text_document", large, 120),
    )
    source = Corpus(prefixes, VOCAB, make_tokenizer(tmp_path / "tokenizer"))
    datasets = build(source, tmp_path / "work", train_iters=40, split="900,100")
    drawn = np.concatenate([datasets.train[n]["tokens"].numpy() for n in range(320)])
    assert drawn.mean() == pytest.approx(0.75, abs=0.05)
    assert 0 < len(datasets.valid) <= 52


def test_an_unfinished_index_is_thrown_away(tmp_path: Path) -> None:
    source, work = corpus(tmp_path, learnable(5_000), 50), tmp_path / "work"
    whole = build(source, work)
    expected = [whole.train[n]["tokens"].tolist() for n in range(20)]
    shuffle = next((work / "index").glob("*train-shuffle_index.npy"))
    shuffle.write_bytes(shuffle.read_bytes()[:-50])  # as a crash while it is written leaves it
    (work / "index" / "complete").unlink()
    again = build(source, work)
    assert [again.train[n]["tokens"].tolist() for n in range(20)] == expected


def test_ranks_share_the_batches_of_one_rank() -> None:
    alone = list(Sharding(8, 2, 0, 1).microbatches(16, 35))
    assert alone == [[16, 17], [18, 19], [20, 21], [22, 23], [24, 25], [26, 27], [28, 29], [30, 31]]
    pair = [list(Sharding(8, 2, rank, 2).microbatches(16, 35)) for rank in (0, 1)]
    assert pair[0] == [[16, 17], [20, 21], [24, 25], [28, 29]]
    assert pair[1] == [[18, 19], [22, 23], [26, 27], [30, 31]]


def test_the_last_evaluation_batch_is_filled_up() -> None:
    pair = [list(Sharding(8, 2, rank, 2).filled(11)) for rank in (0, 1)]
    assert pair[0] == [[0, 1], [4, 5], [8, 9], [FILLER, FILLER]]
    assert pair[1] == [[2, 3], [6, 7], [10, FILLER], [FILLER, FILLER]]


@pytest.mark.parametrize("workers", [0, 2])
def test_fillers_count_for_nothing(tmp_path: Path, workers: int) -> None:
    datasets = build(corpus(tmp_path, learnable(5_000), 50), tmp_path / "work")
    batches = list(
        load_batches(Samples(datasets.train, VOCAB), [[3, 4], [5, FILLER]], CPU, workers)
    )
    assert [int(b.loss_mask.sum()) for b in batches] == [2 * LENGTH, LENGTH]
    assert batches[0].tokens.shape == batches[0].labels.shape == (2, LENGTH)
    assert torch.equal(batches[0].tokens[:, 1:], batches[0].labels[:, :-1])
    assert torch.equal(batches[0].tokens[1], datasets.train[4]["tokens"])


def test_a_bare_pair_is_found_with_and_without_its_suffix(
    tmp_path: Path, stage_context: Callable[..., StageContext]
) -> None:
    prefix = write_pair(tmp_path / "bare" / "v1.0_text", learnable(2_000), 20)
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    context = stage_context("base", "pretrain")
    for name in (f"{prefix}", f"{prefix}.bin", f"{prefix}.idx", f"{prefix.parent}"):
        found = open_corpus(config(data=name, tokenizer=str(tokenizer)), context)
        assert found == Corpus((prefix,), VOCAB, tokenizer)


def test_tinyshakespeare_as_one_document_trains(
    tmp_path: Path, shared_data: Path, stage_context: Callable[..., StageContext]
) -> None:
    text = (shared_data / "tinyshakespeare.txt").read_bytes()
    stream = np.frombuffer(text, np.uint8).astype(np.int64)
    prefix = write_pair(tmp_path / "shakespeare", stream, 1)
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    context = stage_context("base", "pretrain")
    published = run(
        config(
            data=str(prefix),
            tokenizer=str(tokenizer / "tokenizer.json"),
            train_iters=20,
            eval_interval=10,
        ),
        context,
    )
    assert published is not None
    assert published.info["data"]["split_by"] == "tokens"
    assert published.info["data"]["tokens"]["valid"] == round(len(text) * 0.03)
    assert (
        published.info["validation_perplexity"] < published.info["untrained_validation_perplexity"]
    )


def test_training_without_held_out_data(
    tmp_path: Path, stage_context: Callable[..., StageContext]
) -> None:
    data = make_dataset(tmp_path / "corpus", 4_000, 40)
    context = stage_context("base", "pretrain", corpus=data)
    published = run(config(split="1", train_iters=3), context)
    assert published is not None
    assert "validation_loss" not in published.info
    assert published.info["data"]["tokens"] == {"train": 4_000}
