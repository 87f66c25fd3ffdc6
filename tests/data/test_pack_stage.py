"""The pack stage: rows are full, masks are right, nothing is lost without being counted."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pack_datasets import documents, make_dataset, read_documents, write_documents
from tokenizers import Tokenizer, models, pre_tokenizers

from toolkit.artifacts import Artifact, link_tree, sha256
from toolkit.context import StageContext
from toolkit.data.indexed import IndexedReader
from toolkit.data.pack import rows, source
from toolkit.data.pack.bestfit import pack
from toolkit.data.pack.config import TOKENIZE, PackConfig
from toolkit.data.pack.examples import Pair, documents_of, fit
from toolkit.data.pack.rows import write_rows
from toolkit.data.pack.stage import run
from toolkit.errors import DataError, StageError, ToolkitError

MakeContext = Callable[..., StageContext]
QUESTIONS = [
    {"prompt": f"What is {n} plus {m}?", "completion": f"It is {n + m}." * (1 + n % 4)}
    for n in range(30)
    for m in range(4)
]


def write_rows_of(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def config_of(data: str, seq_length: int = 128, **chosen: Any) -> PackConfig:
    raw = {"data": [data], "tokenizer": "vocabulary", "seq_length": seq_length,
           "resources": {"cpus_per_task": 1}, **chosen}  # fmt: skip
    return PackConfig.model_validate(raw)


def chat(context: StageContext, data: str, seq_length: int = 128, **chosen: Any) -> Artifact:
    published = run(config_of(data, seq_length, **chosen), context)
    assert published is not None
    return published


def of_dataset(context: StageContext, seq_length: int, **chosen: Any) -> Artifact:
    raw = {"dataset": "corpus", "seq_length": seq_length, **chosen}
    published = run(PackConfig.model_validate(raw), context)
    assert published is not None
    return published


def examples(artifact: Artifact, name: str = "text_document") -> list[tuple[list[int], list[int]]]:
    """Tokens and mask of every example; padding, which is a row's last sequence, is checked."""
    info = artifact.info["packing"]
    tokens, masks = IndexedReader(artifact.path(name)), IndexedReader(
        artifact.path(f"{name}_loss_mask"))  # fmt: skip
    assert masks.header.dtype is np.uint8
    assert np.array_equal(tokens.lengths, masks.lengths)
    assert np.array_equal(tokens.document_indices, masks.document_indices)
    found, bounds = [], tokens.document_indices.tolist()
    for first, last in pairwise(bounds):
        assert tokens.lengths[first:last].sum() == info["seq_length"]
        for n in range(first, last):
            pair = tokens[n].tolist(), masks[n].tolist()
            if n == last - 1 and not any(pair[1]):
                assert set(pair[0]) == {info["pad_id"]}
            else:
                found.append(pair)
    return found


def test_conversations_are_packed_with_their_masks(
    tmp_path: Path, stage_context: MakeContext, vocabulary: Artifact
) -> None:
    from transformers import AutoTokenizer

    file = write_rows_of(tmp_path / "chat.jsonl", QUESTIONS)
    artifact = chat(stage_context("packed", "pack", vocabulary=vocabulary.folder), file)
    found = examples(artifact)
    tokenizer = AutoTokenizer.from_pretrained(vocabulary.folder)
    expected = []
    for row in QUESTIONS:
        prompt = tokenizer(f"<|user|>{row['prompt']}<|assistant|>")["input_ids"]
        answer = tokenizer(row["completion"] + "<|endoftext|>")["input_ids"]
        expected.append((prompt + answer, [0] * len(prompt) + [1] * len(answer)))
    assert sorted(found) == sorted(expected)
    info = artifact.info
    assert info["packing"]["examples"] == info["counts"]["written"] == len(QUESTIONS)
    assert info["packing"]["tokens"] == sum(len(ids) for ids, _ in expected)
    assert info["packing"]["trained_tokens"] == sum(sum(mask) for _, mask in expected)
    assert info["packing"]["pad_id"] == tokenizer.pad_token_id
    space = info["packing"]["rows"] * 128
    assert info["packing"]["padding_tokens"] == space - info["packing"]["tokens"]
    assert info["packing"]["efficiency"] == round(info["packing"]["tokens"] / space, 6) > 0.9
    assert info["data"]["ended"] == len(QUESTIONS) and "[[It is 0." in info["data"]["example"]
    assert info["tokenizer_sha256"] == sha256(vocabulary.path("tokenizer.json"))
    artifact.verify()


def test_the_result_does_not_depend_on_the_shards(
    tmp_path: Path,
    stage_context: MakeContext,
    vocabulary: Artifact,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = write_rows_of(tmp_path / "chat.jsonl", QUESTIONS)
    whole = chat(stage_context("one", "pack", vocabulary=vocabulary.folder), file)
    monkeypatch.setattr(source, "SHARD_BYTES", 1000)
    monkeypatch.setattr(rows, "BLOCK", 300)
    context = stage_context("many", "pack", vocabulary=vocabulary.folder)
    context.phase = "tokenize"
    assert run(config_of(file), context) is None
    assert len(list((context.work / "tokenize").iterdir())) > 5
    context.phase = "finish"
    cut = chat(context, file)
    assert not (context.work / "tokenize").exists()
    assert [f.sha256 for f in cut.files] == [f.sha256 for f in whole.files]
    assert cut.info["data"] == whole.info["data"]


def test_a_rerun_tokenizes_only_what_is_missing(
    tmp_path: Path,
    stage_context: MakeContext,
    vocabulary: Artifact,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each rank does its share; the finish finds what is there, and says what is not."""
    monkeypatch.setattr(source, "SHARD_BYTES", 1000)
    file = write_rows_of(tmp_path / "chat.jsonl", QUESTIONS)
    context = stage_context("packed", "pack", vocabulary=vocabulary.folder)
    config = config_of(file)
    context.world_size = 2
    for context.rank, context.phase in ((0, "tokenize"), (0, "finish")):
        if context.phase == "finish":
            with pytest.raises(ToolkitError, match="tasks of phase 'tokenize' are not done"):
                run(config, context)
        else:
            assert run(config, context) is None
    done = {p: p.stat().st_mtime_ns for p in (context.work / "tokenize").glob("*/tokens.bin")}
    context.rank, context.phase = 1, "tokenize"
    run(config, context)
    assert done == {path: path.stat().st_mtime_ns for path in done}
    context.rank, context.phase = 0, "finish"
    (damaged,) = (context.work / "tokenize").glob("00003/tokens.bin")
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-2] + b"\1\1")
    with pytest.raises(DataError, match="checksum differs"):
        run(config, context)
    damaged.write_bytes(whole)
    assert run(config, context) is not None


LONG = {"prompt": "Count.", "completion": " ".join(str(n) for n in range(200))}


def test_sources_that_change_between_the_phases_are_refused(
    tmp_path: Path, stage_context: MakeContext, vocabulary: Artifact
) -> None:
    write_rows_of(tmp_path / "a.jsonl", QUESTIONS)
    context = stage_context("packed", "pack", vocabulary=vocabulary.folder)
    run(config_of(str(tmp_path / "*.jsonl")), replace(context, phase=TOKENIZE))
    write_rows_of(tmp_path / "b.jsonl", QUESTIONS)
    with pytest.raises(DataError, match=r"(?s)b\.jsonl: .* a file that was not there.*--fresh"):
        run(config_of(str(tmp_path / "*.jsonl")), replace(context, phase="finish"))


def test_what_is_too_long_is_an_error_that_says_where_and_how_much(
    tmp_path: Path, stage_context: MakeContext, vocabulary: Artifact
) -> None:
    file = write_rows_of(tmp_path / "chat.jsonl", [*QUESTIONS, LONG, QUESTIONS[0]])
    context = stage_context("packed", "pack", vocabulary=vocabulary.folder)
    with pytest.raises(DataError) as caught:
        chat(context, file)
    text = str(caught.value)
    assert "chat.jsonl:121: 1 of 122 examples are longer than a row of 128 tokens" in text
    assert "overflow: truncate" in text and "tokens would be lost" in text
    assert not (context.folder / "artifact.building").exists()


@pytest.mark.parametrize("overflow", ["truncate", "split"])
def test_overflowing_conversations_are_counted(
    tmp_path: Path, stage_context: MakeContext, vocabulary: Artifact, overflow: str
) -> None:
    hopeless = {"prompt": LONG["completion"], "completion": "Yes."}
    file = write_rows_of(tmp_path / "chat.jsonl", [*QUESTIONS, LONG, hopeless])
    context = stage_context("packed", "pack", vocabulary=vocabulary.folder)
    artifact = chat(context, file, overflow=overflow)
    info = artifact.info
    longest = [found for found in examples(artifact) if len(found[0]) == 128]
    total = info["data"]["tokens"]
    if overflow == "truncate":
        assert len(longest) == 1 and info["packing"]["overlong"] == 1
        assert info["data"]["cut_tokens"] == info["packing"]["lost_tokens"] > 0
        # its answer lies beyond the cut
        assert info["data"]["dropped"] == {"no trained token within max_length": 1}
        assert info["packing"]["tokens"] == total
    else:
        assert info["packing"]["overlong"] == 2
        # the pieces of the second row in front of its answer teach nothing
        lost = info["packing"]["lost_tokens"]
        assert lost > 0 and lost % 128 == 0
        assert info["packing"]["tokens"] == total - lost
    assert all(any(mask[1:]) for _, mask in examples(artifact))


def test_preferences_teach_the_chosen_answer(
    tmp_path: Path, stage_context: MakeContext, vocabulary: Artifact
) -> None:
    from transformers import AutoTokenizer

    pairs = [{"prompt": "Say yes.", "chosen": "yes", "rejected": "no"},
             {"prompt": "Say up.", "chosen": "up", "rejected": "down"}]  # fmt: skip
    file = write_rows_of(tmp_path / "pairs.jsonl", pairs)
    context = stage_context("packed", "pack", vocabulary=vocabulary.folder)
    artifact = chat(context, file, rows="preferences")
    tokenizer = AutoTokenizer.from_pretrained(vocabulary.folder)
    texts = {
        tokenizer.decode([t for t, m in zip(*found, strict=True) if m])
        for found in examples(artifact)
    }
    assert texts == {"yes<|endoftext|>", "up<|endoftext|>"}


def test_malformed_rows_stop_or_are_counted(
    tmp_path: Path, stage_context: MakeContext, vocabulary: Artifact
) -> None:
    path = tmp_path / "chat.jsonl"
    write_rows_of(path, QUESTIONS[:10])
    with path.open("a") as stream:
        stream.write('{"prompt": "broken\n{"question": "no such key"}\n')
    with pytest.raises(DataError, match=r"chat\.jsonl:11"):
        chat(stage_context("stop", "pack", vocabulary=vocabulary.folder), str(path))
    context = stage_context("drop", "pack", vocabulary=vocabulary.folder)
    artifact = chat(context, str(path), on_error="drop")
    assert artifact.info["data"]["dropped"] == {"malformed": 2}
    assert artifact.info["data"]["read"] == 12 and len(examples(artifact)) == 10


def test_gsm8k_fills_its_rows(
    shared_data: Path, stage_context: MakeContext, vocabulary: Artifact
) -> None:
    context = stage_context("packed", "pack", vocabulary=vocabulary.folder)
    file = str(shared_data / "gsm8k_train.jsonl")
    columns = {"prompt": "question", "completion": "answer"}
    info = chat(context, file, 2048, columns=columns).info["packing"]
    assert info["examples"] == 7473 and info["lost_tokens"] == 0
    assert info["efficiency"] >= 0.99


CASES = st.tuples(
    st.integers(8, 40),
    st.lists(st.integers(0, 100), min_size=1, max_size=40).filter(any),
    st.sampled_from(["truncate", "split"]),
)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(CASES)
def test_documents_are_in_the_rows_token_by_token(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[int, list[int], Any]
) -> None:
    seq_length, lengths, overflow = case
    folder = tmp_path_factory.mktemp("rows")
    random = np.random.default_rng(0)
    found = [tuple(random.integers(2, 300, n).tolist()) for n in lengths]
    write_documents(folder / "text", found, 300)
    fitted = fit(documents_of([Pair(folder / "text")]), seq_length, overflow)
    packing = pack(fitted.examples.length, seq_length, 0)
    written = write_rows(
        fitted.examples, packing, seq_length, 1, folder / "packed", 300, lambda done: None
    )
    tokens = np.fromfile(folder / "packed.bin", np.uint16)
    mask = np.fromfile(folder / "packed_loss_mask.bin", np.uint8)
    assert len(tokens) == len(mask) == written.rows * seq_length
    assert (tokens[mask == 0] == 1).all()
    kept = [d[:seq_length] if overflow == "truncate" else d for d in found]
    assert sorted(tokens[mask == 1].tolist()) == sorted(t for d in kept for t in d)
    assert written.tokens + fitted.lost_tokens == sum(lengths)
    assert fitted.overlong == sum(n > seq_length for n in lengths)


def test_a_dataset_is_packed_part_by_part(tmp_path: Path, stage_context: MakeContext) -> None:
    parts = {"train/text": documents(200, 300, 1), "valid/text": documents(50, 300, 2)}
    splits = {name.partition("/")[0]: [name] for name in parts}
    corpus = make_dataset(tmp_path / "corpus", parts, 300, splits=splits)
    artifact = of_dataset(stage_context("packed", "pack", corpus=corpus), 64)
    assert artifact.info["splits"] == {
        "train": ["train/text_document"], "valid": ["valid/text_document"]
    }  # fmt: skip
    for name, whole in parts.items():
        part = name.partition("/")[0]
        found = [tuple(ids) for ids, _ in examples(artifact, f"{part}/text_document")]
        assert sorted(found) == sorted(whole)
    assert artifact.info["eod_id"] == 0
    assert artifact.info["packing"]["lost_tokens"] == 0


def test_several_pairs_are_packed_together(tmp_path: Path, stage_context: MakeContext) -> None:
    pairs = {"a": documents(60, 300, 1), "b": documents(60, 300, 2)}
    corpus = make_dataset(tmp_path / "corpus", pairs, 300, sequences=2)
    artifact = of_dataset(stage_context("packed", "pack", corpus=corpus), 64)
    assert sorted(tuple(ids) for ids, _ in examples(artifact)) == sorted(pairs["a"] + pairs["b"])
    mixed = [{row[0] for row in row_tokens(artifact, n)} for n in range(10)]
    assert {1, 2} in mixed  # a row may hold documents of both


def row_tokens(artifact: Artifact, row: int) -> list[list[int]]:
    reader = IndexedReader(artifact.path("text_document"))
    first, last = reader.document_indices[row : row + 2]
    return [reader[n].tolist() for n in range(first, last - 1)]


def test_megatron_reads_rows_and_masks(tmp_path: Path, stage_context: MakeContext) -> None:
    indexed = pytest.importorskip(
        "megatron.core.datasets.indexed_dataset", reason="megatron-core is the oracle"
    )
    corpus = make_dataset(tmp_path / "corpus", {"text": documents(100, 300, 1)}, 300)
    artifact = of_dataset(stage_context("packed", "pack", corpus=corpus), 64)
    for name in ("text_document", "text_document_loss_mask"):
        theirs, ours = indexed.IndexedDataset(str(artifact.path(name))), read_documents(
            artifact, name)  # fmt: skip
        bounds = theirs.document_indices
        assert len(bounds) - 1 == len(ours) == artifact.info["packing"]["rows"]
        for n, row in enumerate(ours):
            sequences = [theirs[i] for i in range(bounds[n], bounds[n + 1])]
            assert tuple(np.concatenate(sequences).tolist()) == row
            assert len(row) == 64


def test_what_can_not_be_packed(tmp_path: Path, stage_context: MakeContext) -> None:
    packed = make_dataset(
        tmp_path / "packed", {"text": documents(9, 300, 1)}, 300, packing={"seq_length": 64}
    )
    with pytest.raises(DataError, match="packed already"):
        of_dataset(stage_context("again", "pack", corpus=packed), 64)
    mix = make_dataset(tmp_path / "mix", {"text": documents(9, 300, 1)}, 300, weights=[1.0])
    with pytest.raises(DataError, match="a blend can't be packed"):
        of_dataset(stage_context("blend", "pack", corpus=mix), 64)
    single = make_dataset(tmp_path / "single", {"text": [(7,)] * 30}, 300)
    with pytest.raises(DataError, match="nothing to learn: no example has a token that others"):
        of_dataset(stage_context("single", "pack", corpus=single), 8)
    long = make_dataset(tmp_path / "long", {"text": documents(9, 300, 1)}, 300)
    with pytest.raises(DataError, match=r"of 9 examples are longer than a row of 8 tokens"):
        of_dataset(stage_context("long", "pack", corpus=long), 8)
    with pytest.raises(ToolkitError, match="pad_token: the tokenizer has no token '<none>'"):
        of_dataset(stage_context("pad", "pack", corpus=long), 64, pad_token="<none>")


def test_a_tokenizer_that_transformers_would_guess(
    tmp_path: Path, stage_context: MakeContext, vocabulary: Artifact
) -> None:
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "tokenizer_config.json").write_text("{}")
    context = stage_context("packed", "pack", vocabulary=tmp_path / "slow")
    with pytest.raises(DataError, match=r"slow: no tokenizer\.json"):
        chat(context, write_rows_of(tmp_path / "chat.jsonl", QUESTIONS))


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({}, "one of them"),
        ({"data": ["a.jsonl"], "tokenizer": "v", "dataset": "c"}, "one of them"),
        ({"data": ["a.jsonl"]}, "tokenizer goes with data"),
        ({"dataset": "c", "tokenizer": "v"}, "tokenizer goes with data"),
        ({"dataset": "c", "format": "pairs"}, "none of conversations"),
        ({"dataset": "c", "rows": "preferences", "format": "alpaca"}, "none of preferences"),
        ({"dataset": "c", "columns": {"chosen": "a"}}, "unknown field chosen"),
        ({"dataset": "c", "overflow": "drop"}, "error"),
    ],
)
def test_settings_that_make_no_sense(chosen: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PackConfig.model_validate({"seq_length": 128, **chosen})


def test_a_vocabulary_with_gaps(tmp_path: Path, stage_context: MakeContext) -> None:
    """Its highest id decides, not the number of its tokens."""
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "<eos>": 1, "far": 69_999}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<eos>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **settings})
    )
    file = write_rows_of(tmp_path / "chat.jsonl", [{"prompt": "far", "completion": " far"}])
    context = stage_context("packed", "pack", vocabulary=folder)
    made = chat(context, file, 8, chat_template="none")
    assert (made.info["dtype"], made.info["vocab_size"]) == ("int32", 70_000)
    assert examples(made) == [([69_999, 69_999, 1], [0, 1, 1])]


@pytest.mark.parametrize("name", ["tokenizer_config.json", "chat_template.jinja"])
def test_a_template_that_changes_between_the_phases_is_other_work(
    tmp_path: Path, stage_context: MakeContext, vocabulary: Artifact, name: str
) -> None:
    """Rows of two templates never come together."""
    folder = tmp_path / "tokenizer"
    link_tree(vocabulary.folder, folder)
    file = write_rows_of(tmp_path / "chat.jsonl", QUESTIONS)
    context = stage_context("packed", "pack", vocabulary=folder)
    run(config_of(file), replace(context, phase=TOKENIZE))
    changed = (folder / name).read_text() + "\n"
    (folder / name).unlink()
    (folder / name).write_text(changed)
    with pytest.raises(StageError, match="1 of 1 tasks of phase 'tokenize' are not done"):
        run(config_of(file), replace(context, phase="finish"))
