"""Blends and splits in pretraining: drawn by weight, held out as made, one tokenizer throughout."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pretrain_runs import (
    LLAMA,
    QUICK,
    VOCAB,
    learnable,
    make_dataset,
    make_tokenizer,
    write_pair,
)
from test_pretrain_packed import make_packed

from toolkit.artifacts import Artifact, publish, sha256
from toolkit.context import StageContext
from toolkit.data.pack.blend import run as run_blend
from toolkit.data.pack.config import BlendConfig, SplitConfig
from toolkit.data.pack.split import run as run_split
from toolkit.errors import DataError, ToolkitError
from toolkit.megatron.config import ParallelConfig, PretrainConfig
from toolkit.megatron.corpus import open_corpus
from toolkit.megatron.datasets import Datasets, build_datasets, prebuild
from toolkit.megatron.distributed import process_groups
from toolkit.megatron.train import run

MakeContext = Callable[..., StageContext]


def config(**settings: object) -> PretrainConfig:
    raw = {"data": "mix", "model": LLAMA, **QUICK, "train_iters": 25, **settings}
    return PretrainConfig.model_validate(raw)


def build(folder: Path, work: Path, **settings: object) -> Datasets:
    chosen = config(**{"data": str(folder), **settings})
    with process_groups(ParallelConfig()):
        corpus = open_corpus(chosen, StageContext("base", "pretrain", work, "test"))
        return build_datasets(corpus, chosen, 1234, work)


def constant(folder: Path, token: int, count: int = 8_000, documents: int = 100) -> Path:
    """A dataset of one token alone, so that samples tell where they come from."""
    built = folder.with_name(f"{folder.name}.building")
    write_pair(built / "text_document", np.full(count, token), documents)
    tokenizer = make_tokenizer(built / "tokenizer")
    info = {
        "prefixes": ["text_document"],
        "vocab_size": VOCAB,
        "tokenizer_sha256": sha256(tokenizer / "tokenizer.json"),
    }
    publish(built, folder, artifact_type="dataset", stage=folder.name, kind="tokenize",
            fingerprint="test", info=info)  # fmt: skip
    return folder


def blend(context: StageContext, **settings: Any) -> Artifact:
    raw = {"data": list(context.inputs), **settings}
    return run_blend(BlendConfig.model_validate(raw), context)


def drawn(dataset: Any, count: int) -> Counter[int]:
    """How many samples begin with each token."""
    return Counter(int(dataset[n]["tokens"][0]) for n in range(count))


def test_samples_are_drawn_by_weight(tmp_path: Path, stage_context: MakeContext) -> None:
    """Within 1 of the wish, though the sizes say otherwise."""
    inputs = {"a": constant(tmp_path / "a", 5), "b": constant(tmp_path / "b", 6, 24_000),
              "c": constant(tmp_path / "c", 7)}  # fmt: skip
    weights = [0.6, 0.3, 0.1]
    mix = blend(stage_context("mix", "blend", **inputs), weights=weights)
    datasets = build(mix.folder, tmp_path / "work", split="90,10")
    count = 25 * QUICK["global_batch_size"]
    found = drawn(datasets.train, count)
    for token, weight in zip((5, 6, 7), weights, strict=True):
        assert abs(found[token] - weight * count) <= 1
    # held-out samples come in the same proportion, and none of them twice
    held_out = drawn(datasets.valid, len(datasets.valid))
    assert len(datasets.valid) >= 0.85 * 25 / 0.6
    assert held_out[5] <= 800 // 32
    for token, weight in zip((5, 6, 7), weights, strict=True):
        assert abs(held_out[token] - weight * len(datasets.valid)) <= 1


def test_split_datasets_are_blended_within_each_part(
    tmp_path: Path, stage_context: MakeContext
) -> None:
    inputs = {}
    for name, token in (("a", 5), ("b", 6)):
        whole = constant(tmp_path / name, token)
        split = SplitConfig.model_validate({"data": "whole", "split": "80,20", "by": "shuffle"})
        inputs[name] = run_split(split, stage_context(f"cut-{name}", "split", whole=whole)).folder
    mix = blend(stage_context("mix", "blend", **inputs), weights=[0.75, 0.25])
    datasets = build(mix.folder, tmp_path / "work")
    assert datasets.parts == {"split_by": "dataset", "tokens": {"train": 12_800, "valid": 3_200}}
    found = drawn(datasets.train, 200)
    assert abs(found[5] - 150) <= 1
    held_out = drawn(datasets.valid, len(datasets.valid))
    count = len(datasets.valid)
    assert count >= 0.85 * 66 and held_out[5] <= 50 and abs(held_out[5] - 0.75 * count) <= 1


def test_packed_datasets_are_blended(tmp_path: Path, stage_context: MakeContext) -> None:
    inputs = {name: make_packed(tmp_path / name, {"text_document": n})
              for name, n in (("a", 100), ("b", 300))}  # fmt: skip
    mix = blend(stage_context("mix", "blend", **inputs), weights=[0.5, 0.5])
    datasets = build(mix.folder, tmp_path / "work", split="90,10")
    rows = {tuple(row) for row in np.memmap(
        mix.path("00-a/text_document.bin"), np.uint16, mode="r").reshape(-1, 32).tolist()
    }  # fmt: skip
    first = [tuple(datasets.train[n]["tokens"].tolist()) in rows for n in range(200)]
    assert abs(sum(first) - 100) <= 1


def test_a_split_that_pretrain_trains_on(
    tmp_path: Path, dataset: Path, stage_context: MakeContext
) -> None:
    split = SplitConfig.model_validate({"data": "corpus", "split": "90,10"})
    cut = run_split(split, stage_context("cut", "split", corpus=dataset))
    published = run(config(data="cut", train_iters=3),
                    stage_context("base", "pretrain", cut=cut.folder))  # fmt: skip
    assert published is not None
    tokens = {part: count["tokens"] for part, count in cut.info["parts"].items()}
    assert published.info["data"] == {"split_by": "dataset", "tokens": tokens}


def test_a_prebuilt_index_is_found(
    tmp_path: Path, stage_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, work = make_dataset(tmp_path / "corpus"), tmp_path / "work"
    chosen = config(data=str(folder))
    corpus = open_corpus(chosen, stage_context("base", "pretrain"))
    parts = prebuild(corpus, chosen, 1234, work)
    indexes = {path: path.stat().st_mtime_ns for path in work.glob("index/*.npy")}
    assert len(indexes) == 6
    datasets = build(folder, work)
    assert datasets.parts == parts
    assert {path: path.stat().st_mtime_ns for path in work.glob("index/*.npy")} == indexes


def test_an_index_of_other_tokens_is_not_taken(tmp_path: Path, stage_context: MakeContext) -> None:
    prefix = write_pair(tmp_path / "bare" / "text", learnable(5_000), 50)
    tokenizer = str(make_tokenizer(tmp_path / "tokenizer"))
    context, work = stage_context("base", "pretrain"), tmp_path / "work"
    chosen = config(data=str(prefix), tokenizer=tokenizer)
    prebuild(open_corpus(chosen, context), chosen, 1234, work)
    write_pair(prefix, learnable(6_000), 30)
    datasets = build(prefix, work, tokenizer=tokenizer)
    fresh = build(prefix, tmp_path / "fresh", tokenizer=tokenizer)
    for n in range(50):
        assert np.array_equal(datasets.train[n]["tokens"], fresh.train[n]["tokens"])


def test_a_checkpoint_of_another_tokenizer_names_both(
    tmp_path: Path, dataset: Path, stage_context: MakeContext
) -> None:
    checkpoint = tmp_path / "checkpoint"
    make_tokenizer(checkpoint / "tokenizer", VOCAB - 1)
    (checkpoint / "latest_checkpointed_iteration.txt").write_text("3")
    context = stage_context("base", "pretrain", corpus=dataset)
    with pytest.raises(ToolkitError, match="another tokenizer than the data's") as caught:
        run(config(data="corpus", load=str(checkpoint)), context)
    for tokenizer in (checkpoint, dataset):
        assert str(tokenizer / "tokenizer" / "tokenizer.json") in str(caught.value)
        assert sha256(tokenizer / "tokenizer" / "tokenizer.json")[:12] in str(caught.value)


def test_a_dataset_whose_tokenizer_is_not_its_own(
    tmp_path: Path, stage_context: MakeContext
) -> None:
    folder = make_dataset(tmp_path / "corpus")
    own = folder / "tokenizer" / "tokenizer.json"
    own.write_text(own.read_text() + " ")
    with pytest.raises(DataError, match="made with another tokenizer"):
        run(config(data="corpus"), stage_context("base", "pretrain", corpus=folder))
    own.unlink()
    with pytest.raises(DataError, match="tokenizer: no tokenizer that can be read"):
        run(config(data="corpus"), stage_context("other", "pretrain", corpus=folder))


def test_a_pair_within_an_artifact_has_its_tokenizer(
    tmp_path: Path, stage_context: MakeContext
) -> None:
    folder, context = make_dataset(tmp_path / "corpus"), stage_context("base", "pretrain")
    prefix = str(folder / "text_document")
    corpus = open_corpus(config(data=prefix), context)
    assert corpus.tokenizer == folder / "tokenizer" and corpus.vocab_size == VOCAB
    other = make_tokenizer(tmp_path / "other", VOCAB + 1)
    with pytest.raises(DataError, match="made with another tokenizer"):
        open_corpus(config(data=prefix, tokenizer=str(other)), context)


@pytest.mark.parametrize("name", ["text_document", ""])
def test_packed_rows_without_their_artifact(
    tmp_path: Path, stage_context: MakeContext, name: str
) -> None:
    """Else the padding and the prompts would be trained."""
    folder = make_packed(tmp_path / "packed", {"text_document": 60})
    (folder / "artifact.json").unlink()
    chosen = config(data=str(folder / name), tokenizer=str(folder / "tokenizer"))
    with pytest.raises(DataError, match="packed rows with a loss mask"):
        open_corpus(chosen, stage_context("base", "pretrain"))
