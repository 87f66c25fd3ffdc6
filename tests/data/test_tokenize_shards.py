"""``tokenize`` in shards: the same bytes whatever the ranks, the processes and the crashes."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toolkit.artifacts import Artifact, read_artifact
from toolkit.context import StageContext
from toolkit.data import dataset_info, tokenize
from toolkit.data.config import TokenizeConfig
from toolkit.data.indexed import IndexedReader
from toolkit.data.planning import remember_sources
from toolkit.data.sentences import split_sentences
from toolkit.data.sources import expand
from toolkit.data.tasks import checksum, run_tasks
from toolkit.data.tokenize_plan import cut_sources, make_plan
from toolkit.errors import DataError, ExitCode, StageError, ToolkitError
from toolkit.pipeline.state import StageFile, read_state
from toolkit.stage import Resources

KILLS = int(os.environ.get("TOOLKIT_KILLS", "10"))
"""Of a run at random moments; the figure in benchmarks/RESULTS.md is from one with more."""
SHARD = 4000


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of every size, one of them cut into several shards."""
    folder = tmp_path_factory.mktemp("corpus")
    draw = random.Random(5)
    for name, count in [("a", 3), ("b", 400), ("c", 60), ("d", 1)]:
        rows = []
        for number in range(count):
            words = " ".join(draw.choice(["alpha", "beta", "\u4e2d", "x=1"]) for _ in range(20))
            row: dict[str, Any] = {"text": f"{name} {number} {words}", "meta": {"title": words[:9]}}
            rows.append(json.dumps(row, ensure_ascii=False))
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "e.txt").write_text("a whole file.\nIt has two sentences, or so.\n")
    return folder


@pytest.fixture
def begin(
    stage_context: Callable[..., StageContext], vocabulary: Artifact, corpus: Path
) -> Callable[..., tuple[TokenizeConfig, StageContext]]:
    """``begin("name", **settings)`` gives a config over the corpus, and a context."""

    def make(
        name: str = "corpus", sources: Any = None, **settings: Any
    ) -> tuple[TokenizeConfig, StageContext]:
        given = {"sources": sources or [str(corpus)], "shard_bytes": SHARD, **settings}
        config = TokenizeConfig.model_validate({**given, "tokenizer": "vocabulary"})
        return config, stage_context(name, "tokenize", vocabulary=vocabulary.folder)

    return make


def files(built: Artifact | None) -> dict[str, str]:
    assert built is not None
    return {entry.path: entry.sha256 for entry in built.files}


def test_the_number_of_processes_changes_nothing(begin: Callable[..., Any]) -> None:
    found = []
    for workers in (1, 2, 3, 7):
        resources = Resources(cpus_per_task=workers)
        config, context = begin(f"w{workers}", resources=resources)
        found.append(tokenize.run(config, context))
        assert not (context.work / "shards").exists()
    assert len(found[0].info["shards"]) > 7
    assert all(files(built) == files(found[0]) for built in found)
    assert all(built.info == found[0].info for built in found)


@pytest.mark.parametrize("ranks", [3, 7])
def test_the_number_of_ranks_changes_nothing(begin: Callable[..., Any], ranks: int) -> None:
    expected = tokenize.run(*begin("one"))
    config, context = begin("many")
    order = list(range(ranks))
    random.Random(ranks).shuffle(order)
    for rank in order:
        one = replace(context, rank=rank, world_size=ranks, phase="shards")
        assert tokenize.run(config, one) is None
    assert files(tokenize.run(config, replace(context, phase="finish"))) == files(expected)


def test_a_finish_before_the_ranks_says_which_shards_are_missing(
    begin: Callable[..., Any],
) -> None:
    config, context = begin()
    tokenize.run(config, replace(context, rank=1, world_size=2, phase="shards"))
    with pytest.raises(StageError, match=r"tasks of phase 'shards' are not done: 00000, 00002"):
        tokenize.run(config, replace(context, phase="finish"))
    assert not (context.folder / "artifact.building").exists()


@pytest.mark.slow
def test_the_bytes_are_those_of_megatrons_builder(
    begin: Callable[..., Any], tmp_path: Path
) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
    from torch import tensor

    built = tokenize.run(*begin(level="sentence"))
    reader = IndexedReader(built.path("text_sentence"))
    theirs = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=reader.header.dtype)
    for first, last in np.lib.stride_tricks.sliding_window_view(reader.document_indices, 2):
        pieces = [reader[index] for index in range(first, last)]
        tokens = tensor(np.concatenate(pieces).astype(np.int64))
        theirs.add_document(tokens, [len(piece) for piece in pieces])
    theirs.finalize(str(tmp_path / "theirs.idx"))
    for suffix in ("bin", "idx"):
        ours = built.path(f"text_sentence.{suffix}").read_bytes()
        assert ours == (tmp_path / f"theirs.{suffix}").read_bytes()


def worker_stage(folder: Path, corpus: Path, vocabulary: Artifact) -> Path:
    folder.mkdir(parents=True)
    settings = {
        "kind": "tokenize",
        "sources": [str(corpus)],
        "tokenizer": "vocabulary",
        "shard_bytes": SHARD,
        "on_error": "quarantine",
    }
    inputs = {
        "vocabulary": {"folder": str(vocabulary.folder), "type": "tokenizer", "fingerprint": "f"}
    }
    StageFile("corpus", "tokenize", "f1", 7, settings, inputs).write(folder)
    return folder


def worker(folder: Path, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "toolkit.worker", str(folder)],
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_the_same(
    tmp_path: Path, corpus: Path, vocabulary: Artifact
) -> None:
    expected = worker_stage(tmp_path / "whole", corpus, vocabulary)
    begun = time.monotonic()
    assert worker(expected).wait() == ExitCode.OK
    whole = time.monotonic() - begun
    draw, done = random.Random(11), 0
    folder, number = worker_stage(tmp_path / "0", corpus, vocabulary), 0
    for _ in range(KILLS):
        process = worker(folder)
        try:
            process.wait(timeout=draw.uniform(0.2, 1.0) * whole)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if (folder / "artifact").exists():
            assert files(read_artifact(folder / "artifact")) == files(
                read_artifact(expected / "artifact")
            )
            done, number = done + 1, number + 1
            folder = worker_stage(tmp_path / str(number), corpus, vocabulary)
    assert worker(folder).wait() == ExitCode.OK
    last = read_artifact(folder / "artifact")
    assert files(last) == files(read_artifact(expected / "artifact"))
    last.verify()


def test_an_array_of_jobs_and_a_last_one(
    tmp_path: Path, corpus: Path, vocabulary: Artifact
) -> None:
    folder = worker_stage(tmp_path / "stage", corpus, vocabulary)
    for rank in (1, 0):
        ranks = {"RANK": str(rank), "WORLD_SIZE": "2", "TOOLKIT_PHASE": "shards"}
        assert worker(folder, **ranks).wait() == ExitCode.OK
    assert read_state(folder).status == "pending"
    assert worker(folder, TOOLKIT_PHASE="finish").wait() == ExitCode.OK
    state = read_state(folder)
    assert state.status == "complete"
    assert [attempt["phase"] for attempt in state.attempts] == ["shards", "finish"]


def test_sources_that_change_between_ranks_are_refused(
    begin: Callable[..., Any], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.jsonl").write_text('{"text": "one"}\n')
    config, context = begin(sources=[str(data)])
    tokenize.run(config, replace(context, phase="shards"))
    (data / "b.jsonl").write_text('{"text": "two"}\n')
    with pytest.raises(DataError, match=r"(?s)b\.jsonl: .* a file that was not there.*--fresh"):
        tokenize.run(config, replace(context, phase="finish"))
    (data / "b.jsonl").unlink()
    (data / "a.jsonl").write_text('{"text": "one more"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl: .*16 bytes before, 21 now"):
        tokenize.run(config, replace(context, phase="finish"))
    (data / "a.jsonl").rename(data / "c.jsonl")
    with pytest.raises(DataError, match=r"a\.jsonl: .* a file is gone"):
        tokenize.run(config, context)


def test_sources_in_another_order_are_refused(begin: Callable[..., Any], corpus: Path) -> None:
    _, context = begin()
    sources = expand(corpus)
    remember_sources(sources, context)
    remember_sources(sources, context)
    with pytest.raises(DataError, match="changed since this stage began: their order"):
        remember_sources(sources[::-1], context)


def test_a_source_that_goes_behind_the_plan_is_named(
    begin: Callable[..., Any], tmp_path: Path
) -> None:
    data = tmp_path / "a.jsonl"
    data.write_text('{"text": "one"}\n')
    config, context = begin(sources=[str(data)])
    plan = make_plan(config, context, cut_sources(config, context))
    data.unlink()
    with pytest.raises(DataError, match=r"a\.jsonl: .*No such file"):
        run_tasks(tokenize.SHARDS, tokenize.FUNCTION, plan.tasks, context, workers=1)


def test_a_file_system_without_links(
    begin: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, context = begin(output="shards")
    linked = files(tokenize.run(config, context))

    def refuse(*_: object, **options: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    config, context = begin("copied", output="shards")
    copied = files(tokenize.run(config, context))
    del linked["data_path.txt"], copied["data_path.txt"]  # which have the folder's name
    assert copied == linked


def test_a_shard_that_was_damaged_since_is_found(begin: Callable[..., Any]) -> None:
    config, context = begin()
    tokenize.run(config, replace(context, phase="shards"))
    path = context.work / "shards" / "00003" / "text_document.bin"
    content = bytearray(path.read_bytes())
    content[7] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"00003/text_document\.bin: .*checksum differs"):
        tokenize.run(config, replace(context, phase="finish"))


def test_very_many_sources_are_listed_in_a_file(
    begin: Callable[..., Any], corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = tokenize.run(*begin("inline")).info["sources"]
    monkeypatch.setattr(dataset_info, "MOST_SOURCES", 3)
    built = tokenize.run(*begin("file"))
    sizes = [path.stat().st_size for path in corpus.iterdir()]
    assert built.info["sources"] == [{"name": "sources.jsonl", "files": 5, "size": sum(sizes)}]
    lines = built.path("sources.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == listed
    whole = next(entry for entry in listed if entry["name"].endswith("a.jsonl"))
    assert whole["xxh3"] == checksum(corpus / "a.jsonl")
    cut = [entry for entry in listed if entry["name"].endswith("b.jsonl")]
    assert [entry["start"] for entry in cut[1:]] == [entry["stop"] for entry in cut[:-1]]


def test_weights_make_a_blend(begin: Callable[..., Any], corpus: Path) -> None:
    sources = [
        {"source": str(corpus / "b.jsonl"), "weight": 3, "name": "bees"},
        {"source": str(corpus / "a.jsonl"), "weight": 1},
    ]
    built = tokenize.run(*begin(sources=sources))
    info = built.info
    assert info["prefixes"] == ["00_bees_text_document", "01_a.jsonl_text_document"]
    assert info["weights"] == [0.75, 0.25]
    pairs = built.path("data_path.txt").read_text().split()
    assert pairs[::2] == ["0.75", "0.25"]
    assert [Path(f"{p}.idx").is_file() for p in pairs[1::2]] == [True, True]
    assert [s["documents"] for s in info["per_source"]] == [400, 3]
    assert sum(s["tokens"] for s in info["per_source"]) == info["counts"]["tokens"]


def test_shards_may_stay_as_they_are(begin: Callable[..., Any]) -> None:
    merged = tokenize.run(*begin("merged"))
    config, context = begin("shards", output="shards")
    built = tokenize.run(config, context)
    assert built.info["prefixes"] == [
        f"text_document_{number:05d}" for number in range(len(built.info["shards"]))
    ]
    parts = [built.path(f"{prefix}.bin").read_bytes() for prefix in built.info["prefixes"]]
    assert b"".join(parts) == merged.path("text_document.bin").read_bytes()
    sizes = [len(part) for part in parts]
    pairs = built.path("data_path.txt").read_text().split()
    expected = [size / sum(sizes) for size in sizes]
    assert [float(weight) for weight in pairs[::2]] == pytest.approx(expected, rel=1e-4)
    assert "weights" not in built.info  # one corpus, whichever way it is stored
    assert not merged.path("data_path.txt").exists()


def test_every_key_becomes_a_dataset(begin: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"text": "one", "meta": {"title": ""}}, {"text": " ", "meta": {"title": "two"}}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    built = tokenize.run(*begin(sources=[str(path)], text_key=["text", "meta.title"]))
    assert built.info["prefixes"] == ["text_document", "meta.title_document"]
    assert [len(IndexedReader(built.path(prefix))) for prefix in built.info["prefixes"]] == [1, 1]
    assert built.info["counts"] | {"tokens": 0, "text_bytes": 0} == {
        "read": 4,
        "written": 2,
        "empty": 2,
        "quarantined": 0,
        "tokens": 0,
        "text_bytes": 0,
    }


def test_sentences_are_sequences(begin: Callable[..., Any], tmp_path: Path) -> None:
    texts = ["One sentence. And another one! A third?", "Just one."]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    built = tokenize.run(*begin(sources=[str(path)], level="sentence"))
    reader = IndexedReader(built.path("text_sentence"))
    counts = [len(split_sentences(text)) for text in texts]
    assert counts == [3, 1]
    assert reader.document_indices.tolist() == [0, 3, 4]
    ends = [int(reader[index][-1]) == built.info["eod_id"] for index in range(4)]
    assert ends == [False, False, True, True]
    assert built.info["counts"]["written"] == 2


def test_fill_in_the_middle(
    begin: Callable[..., Any], stage_context: Callable[..., StageContext], corpus: Path
) -> None:
    config, context = begin(fim={"fim_rate": 1.0})
    with pytest.raises(ToolkitError, match="none of the known tokens for fill-in-the-middle"):
        tokenize.run(config, context)
    names = ("<|user|>", "<|assistant|>", "<|system|>")
    keys = ("prefix_token", "middle_token", "suffix_token")
    fim = {"fim_rate": 1.0, "fim_spm_rate": 0.0, **dict(zip(keys, names, strict=True))}
    plain = tokenize.run(*begin("plain"))
    found = [
        tokenize.run(*begin(f"s{size}", fim=fim, shard_bytes=size)) for size in (SHARD, 1 << 20)
    ]
    assert files(found[0]) == files(found[1])
    reader, whole = (IndexedReader(b.path("text_document")) for b in (found[0], plain))
    assert len(reader) == len(whole)
    assert reader.lengths.sum() >= whole.lengths.sum() + 3 * len(whole)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"text_key": []}, "text_key must name one key"),
        ({"text_key": ["a", "a"]}, "several that differ"),
        ({"text_key": ["a b", "a_b"]}, "'a b' and 'a_b' would both be written to a_b_document"),
        ({"fim": {}, "level": "sentence"}, "fim rearranges whole documents"),
        ({"sources": [{"source": "a", "weight": 0}]}, "greater than 0"),
        (
            {"sources": [{"source": s, "weight": 1, "name": "n"} for s in "ab"]},
            "the name 'n' twice",
        ),
    ],
)
def test_settings_that_can_not_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenizeConfig.model_validate({"sources": ["a"], "tokenizer": "t", **settings})
