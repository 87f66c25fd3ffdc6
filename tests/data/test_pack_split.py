"""Splits by documents: nothing lost, copies on one side, shares as asked."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pack_datasets import documents, make_dataset, read_documents

from toolkit.artifacts import Artifact
from toolkit.context import StageContext
from toolkit.data.indexed import IndexedWriter
from toolkit.data.pack import split as split_stage
from toolkit.data.pack.config import SplitConfig, shares
from toolkit.data.pack.split import blocks, choose
from toolkit.errors import DataError

MakeContext = Callable[..., StageContext]
PARTS = ("train", "valid", "test")


def run(context: StageContext, **chosen: Any) -> Artifact:
    return split_stage.run(SplitConfig.model_validate({"data": "corpus", **chosen}), context)


def read(artifact: Artifact, part: str) -> list[tuple[int, ...]]:
    return [d for name in artifact.info["splits"][part] for d in read_documents(artifact, name)]


@pytest.mark.parametrize("by", ["content", "shuffle"])
@pytest.mark.parametrize("vocab_size", [300, 70_000])
def test_every_document_is_in_one_part(
    tmp_path: Path, stage_context: MakeContext, by: str, vocab_size: int
) -> None:
    found = {"a": documents(400, vocab_size, 1), "code/b": documents(200, vocab_size, 2)}
    corpus = make_dataset(tmp_path / "corpus", found, vocab_size)
    context = stage_context("parts", "split", corpus=corpus)
    artifact = run(context, split="80,15,5", by=by)
    parts = {part: read(artifact, part) for part in PARTS}
    every = [*found["a"], *found["code/b"]]
    assert sorted(d for part in parts.values() for d in part) == sorted(every)
    counts = artifact.info["parts"]
    assert {p: len(d) for p, d in parts.items()} == {p: c["documents"] for p, c in counts.items()}
    assert artifact.info["counts"]["tokens"] == sum(map(len, every))
    if by == "shuffle":
        assert [len(parts[p]) for p in PARTS] == [480, 90, 30]
    else:
        assert len(parts["train"]) == pytest.approx(480, abs=40)
    # in order within a part, and not the tail
    order = {document: n for n, document in enumerate(found["a"])}
    places = [order[d] for d in read_documents(artifact, "valid/a")]
    assert places == sorted(places) and places[0] < 100
    artifact.verify()


def test_copies_fall_on_one_side_and_stay_there(tmp_path: Path, stage_context: MakeContext) -> None:
    found = documents(300, 300, 1)
    first = run(
        stage_context("first", "split",
                      corpus=make_dataset(tmp_path / "one", {"text": found}, 300)),
        split="50,50",
    )  # fmt: skip
    grown = [*documents(100, 300, 2), *found, *found]
    again = run(
        stage_context("again", "split",
                      corpus=make_dataset(tmp_path / "two", {"text": grown}, 70_000)),
        split="50,50",
    )  # fmt: skip
    train, valid = set(read(again, "train")), set(read(again, "valid"))
    assert not train & valid
    assert set(read(first, "train")) <= train and set(read(first, "valid")) <= valid


def test_documents_of_several_sequences_and_masks_stay_together(
    tmp_path: Path, stage_context: MakeContext
) -> None:
    corpus = make_dataset(tmp_path / "corpus", {"text": documents(100, 300, 1)}, 300, mask=True,
                          sequences=2)  # fmt: skip
    artifact = run(stage_context("parts", "split", corpus=corpus), split="70,30")
    assert artifact.info["masks"] == ["train/text_loss_mask", "valid/text_loss_mask"]
    for part in ("train", "valid"):
        for tokens, mask in zip(
            read_documents(artifact, f"{part}/text"),
            read_documents(artifact, f"{part}/text_loss_mask"),
            strict=True,
        ):
            assert mask == tuple(token % 2 for token in tokens)


def test_megatron_reads_a_part(tmp_path: Path, stage_context: MakeContext) -> None:
    indexed = pytest.importorskip(
        "megatron.core.datasets.indexed_dataset", reason="megatron-core is the oracle"
    )
    corpus = make_dataset(tmp_path / "corpus", {"text": documents(200, 300, 1)}, 300)
    artifact = run(stage_context("parts", "split", corpus=corpus), split="70,30")
    theirs = indexed.IndexedDataset(str(artifact.path("valid/text")))
    assert [tuple(theirs[n].tolist()) for n in range(len(theirs))] == read(artifact, "valid")
    assert theirs.document_indices[-1] == len(theirs)


def test_an_empty_part_is_refused(tmp_path: Path, stage_context: MakeContext) -> None:
    corpus = make_dataset(tmp_path / "corpus", {"text": documents(3, 300, 1)}, 300)
    context = stage_context("parts", "split", corpus=corpus)
    with pytest.raises(DataError, match=r"the test part \(0.10%\) gets none of the 3 documents"):
        run(context, split="600,399,1", by="shuffle")
    assert not (context.folder / "artifact.building").exists()


def test_a_split_dataset_is_not_split_again(tmp_path: Path, stage_context: MakeContext) -> None:
    corpus = make_dataset(tmp_path / "corpus", {"text": documents(200, 300, 1)}, 300)
    once = run(stage_context("once", "split", corpus=corpus), split="70,30")
    with pytest.raises(DataError, match="the dataset is split already"):
        run(stage_context("twice", "split", corpus=once.folder))


@pytest.mark.parametrize(
    ("text", "message"),
    [("100", "holds nothing out"), ("0,1", "nothing to train on"), ("1,2,3,4", "pattern")],
)
def test_splits_that_make_no_sense(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SplitConfig.model_validate({"data": "corpus", "split": text})


@settings(deadline=None, max_examples=100, derandomize=True)
@given(st.lists(st.integers(0, 50), max_size=60), st.integers(1, 80))
def test_blocks_cover_all_documents_once(lengths: list[int], size: int) -> None:
    bounds = np.cumsum([0, *lengths])
    found = blocks(bounds, size)
    assert [n for first, last in found for n in range(first, last)] == list(range(len(lengths)))
    for first, last in found:
        assert last == first + 1 or bounds[last] - bounds[first] <= size


def test_hashes_do_not_depend_on_the_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = np.array([3, 0, 7, 1], np.int64)
    with IndexedWriter(tmp_path / "text", 300) as writer:
        writer.write(np.arange(11), lengths)
    wanted = shares("50,50")

    def chosen() -> Sequence[int]:
        return choose([tmp_path / "text"], wanted, "content", 0)[tmp_path / "text"].tolist()

    whole = chosen()
    monkeypatch.setattr(split_stage, "BLOCK", 2)
    assert chosen() == whole
