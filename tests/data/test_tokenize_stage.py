"""The ``tokenize`` stage: every record is accounted for, and nothing half-made is left."""

import base64
import errno
import gzip
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from toolkit.artifacts import Artifact, read_artifact, sha256
from toolkit.context import StageContext
from toolkit.data import tokenize, tokenize_shard
from toolkit.data.config import TokenizeConfig
from toolkit.data.encoders import Encoded, GigatokenEncoder
from toolkit.data.indexed import IndexedReader
from toolkit.data.samples import read_sample
from toolkit.errors import DataError, ToolkitError
from toolkit.stage import Resources

Make = Callable[..., Artifact]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def make(stage_context: Callable[..., StageContext], vocabulary: Artifact) -> Make:
    """``make(*sources, **settings)`` runs the stage with the trained tokenizer, or another."""

    def run(*sources: Path | str, tokenizer: Path = vocabulary.folder, **settings: Any) -> Artifact:
        context = stage_context("corpus", "tokenize", vocabulary=tokenizer)
        config = TokenizeConfig(
            sources=[str(s) for s in sources], tokenizer="vocabulary", **settings
        )
        return tokenize.run(config, context)

    return run


def jsonl(path: Path, *texts: str, key: str = "text") -> Path:
    path.write_text("".join(json.dumps({key: text}) + "\n" for text in texts))
    return path


def texts_of(built: Artifact, prefix: str = "text_document") -> list[str]:
    tokenizer = Tokenizer.from_file(str(built.path("tokenizer", "tokenizer.json")))
    reader = IndexedReader(built.path(prefix))
    return [
        tokenizer.decode(reader[i].tolist(), skip_special_tokens=False) for i in range(len(reader))
    ]


def assert_accounted_for(built: Artifact) -> None:
    counts = built.info["counts"]
    assert counts["read"] == counts["written"] + counts["empty"] + counts["quarantined"]


def test_documents_end_with_the_token_and_come_back(make: Make, tmp_path: Path) -> None:
    texts = ["One.", " zwei \u00e4\u4e2d\U0001f600\n", "<|endoftext|> in a text", "nul \x00"]
    built = make(jsonl(tmp_path / "a.jsonl", *texts))
    assert texts_of(built) == [f"{text}<|endoftext|>" for text in texts]
    reader = IndexedReader(built.path("text_document"))
    for index in range(len(reader)):
        assert (reader[index] == built.info["eod_id"]).nonzero()[0].tolist() == [
            len(reader[index]) - 1
        ]


def test_what_the_artifact_says_of_itself(make: Make, tmp_path: Path, vocabulary: Artifact) -> None:
    built = make(jsonl(tmp_path / "a.jsonl", "one", "", "three"))
    info = built.info
    assert built.type == "dataset"
    assert info["prefixes"] == ["text_document"]
    assert info["dtype"] == "uint16"
    assert info["vocab_size"] == 2048
    assert info["tokenizer_sha256"] == sha256(vocabulary.path("tokenizer.json"))
    counts = info["counts"]
    assert (counts["read"], counts["written"], counts["empty"]) == (3, 2, 1)
    assert counts["quarantined"] == 0
    assert counts["text_bytes"] == len("onethree")
    lengths = IndexedReader(built.path("text_document")).lengths
    assert counts["tokens"] == lengths.sum()
    assert info["document_lengths"]["max"] == lengths.max()
    assert info["backend"] == "gigatoken"
    assert {f.path for f in built.files} == {
        *("text_document.bin", "text_document.idx"),
        *(f"tokenizer/{f.path}" for f in vocabulary.files),
    }
    assert read_artifact(built.folder) == built
    built.verify()


def test_megatron_opens_it(make: Make, tmp_path: Path) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    built = make(jsonl(tmp_path / "a.jsonl", "one", "two two"))
    theirs, ours = IndexedDataset(str(built.path("text_document"))), texts_of(built)
    assert len(theirs) == 2
    tokenizer = Tokenizer.from_file(str(built.path("tokenizer", "tokenizer.json")))
    assert [tokenizer.decode(theirs[i].tolist(), skip_special_tokens=False) for i in (0, 1)] == ours


def test_all_formats_in_one_folder(make: Make, tmp_path: Path) -> None:
    data = tmp_path / "data with space"
    data.mkdir()
    jsonl(data / "a.jsonl", "from jsonl", key="body")
    (data / "b.jsonl.gz").write_bytes(gzip.compress(b'{"body": "from gzip"}\r\n'))
    pq.write_table(pa.table({"id": [1], "body": ["from parquet"]}), data / "c.parquet")
    (data / "d.txt").write_text("from text\n")
    built = make(data, text_key="body")
    found = ["from jsonl", "from gzip", "from parquet", "from text\n"]
    assert texts_of(built, "body_document") == [f"{text}<|endoftext|>" for text in found]
    assert built.info["prefixes"] == ["body_document"]


def test_a_text_key_that_is_no_file_name(make: Make, tmp_path: Path) -> None:
    built = make(jsonl(tmp_path / "a.jsonl", "one", key="a/b c"), text_key="a/b c")
    assert built.info["prefixes"] == ["a_b_c_document"]


@pytest.mark.parametrize(("sample_by", "count"), [("document", 1), ("paragraph", 2), ("line", 3)])
def test_parts_of_a_text_file(make: Make, tmp_path: Path, sample_by: str, count: int) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n\nthree\n")
    built = make(tmp_path / "a.txt", sample_by=sample_by)
    assert built.info["counts"]["written"] == count
    assert_accounted_for(built)


def test_empty_documents_are_counted_and_not_written(make: Make, tmp_path: Path) -> None:
    built = make(jsonl(tmp_path / "a.jsonl", "", "one", " \n\t ", "", "two", ""))
    assert texts_of(built) == ["one<|endoftext|>", "two<|endoftext|>"]
    assert built.info["counts"]["empty"] == 4
    assert_accounted_for(built)


def test_documents_of_which_no_token_is_left_count_as_empty(make: Make, tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"one": 0, "<eos>": 1}))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.normalizer = normalizers.Replace("gone", "")
    folder = foreign(tmp_path, tokenizer, eos_token="<eos>")
    built = make(jsonl(tmp_path / "a.jsonl", "gone", "one one", "gone"), tokenizer=folder)
    assert (built.info["counts"]["written"], built.info["counts"]["empty"]) == (1, 2)
    assert IndexedReader(built.path("text_document"))[0].tolist() == [0, 0, 1]
    assert_accounted_for(built)


def test_without_the_token_at_the_end(make: Make, tmp_path: Path) -> None:
    built = make(jsonl(tmp_path / "a.jsonl", "one", "two"), append_eod=False)
    assert texts_of(built) == ["one", "two"]
    assert built.info["eod_id"] is None


LINES = [
    b'{"text": "first"}',
    b'{"text": "cut',
    b'{"txt": "other key"}',
    b'{"text": null}',
    b'{"text": 17}',
    b'{"text": ["a"]}',
    b'{"text": ""}',
    '{"text": "\u00e4"}'.encode("latin-1"),
    b'"no object"',
    b'{"text": "last"}',
]
REASONS = [
    (2, "invalid JSON"),
    (3, "there is no key 'text'; the keys are: 'txt'; did you mean 'txt'?"),
    (4, "the value of 'text' is null, not a text"),
    (5, "the value of 'text' is int '17', not a text"),
    (6, "the value of 'text' is list \"['a']\", not a text"),
    (8, "invalid UTF-8"),
    (9, "a string where a JSON object was expected"),
]


def test_bad_records_are_set_aside_and_counted(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(LINES))
    built = make(path, on_error="quarantine")
    assert texts_of(built) == ["first<|endoftext|>", "last<|endoftext|>"]
    counts = built.info["counts"]
    assert [counts[k] for k in ("read", "written", "empty", "quarantined")] == [10, 2, 1, 7]
    rows = [json.loads(row) for row in built.path("quarantine.jsonl").read_text().splitlines()]
    assert [row["where"] for row in rows] == [f"{path}:{line}" for line, _ in REASONS]
    for row, (line, reason) in zip(rows, REASONS, strict=True):
        assert row["reason"].startswith(reason)
        raw = row["raw"].encode() if "raw" in row else base64.b64decode(row["raw_base64"])
        assert raw == LINES[line - 1] or json.loads(raw) == json.loads(LINES[line - 1])


@pytest.mark.parametrize(("line", "reason"), REASONS)
def test_a_bad_record_stops_the_stage_and_leaves_nothing(
    make: Make, tmp_path: Path, line: int, reason: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join([LINES[0], LINES[line - 1], LINES[-1]]))
    with pytest.raises(DataError) as caught:
        make(path)
    assert caught.value.where == f"{path}:2"
    assert caught.value.message.startswith(reason)
    assert not list((tmp_path / "run" / "corpus").glob("artifact*"))


def test_no_quarantine_file_where_nothing_is_bad(make: Make, tmp_path: Path) -> None:
    built = make(jsonl(tmp_path / "a.jsonl", "one"), on_error="quarantine")
    assert not built.path("quarantine.jsonl").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": ""}\n{"text": " "}\n', "of 2 records 2 are empty and 0 are bad"),
        (b'{"txt": "a"}\n{"text": ""}\n', "of 2 records 1 are empty and 1 are bad\n.*'text'"),
    ],
)
def test_no_text_at_all_is_an_error(
    make: Make, tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=message):
        make(tmp_path / "a.jsonl", on_error="quarantine")
    assert not list((tmp_path / "run" / "corpus").glob("artifact*"))


def test_a_missing_parquet_column_is_an_error_also_with_a_quarantine(
    make: Make, tmp_path: Path
) -> None:
    pq.write_table(pa.table({"content": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: there is no key 'text'.*'content'"):
        make(tmp_path / "a.parquet", on_error="quarantine")


def test_null_in_a_parquet_column(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a", None, "c"]}), path, row_group_size=1)
    with pytest.raises(DataError, match=r"a\.parquet:2: the value of 'text' is null"):
        make(path)
    assert make(path, on_error="quarantine").info["counts"]["quarantined"] == 1


def foreign(folder: Path, tokenizer: Tokenizer, **settings: Any) -> Path:
    """A tokenizer folder as another program leaves it."""
    target = folder / "foreign"
    target.mkdir()
    tokenizer.save(str(target / "tokenizer.json"))
    (target / "tokenizer_config.json").write_text(json.dumps(settings))
    (target / "model.safetensors").write_bytes(b"weights")
    return target


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordPieceTrainer(
        vocab_size=60, special_tokens=["[UNK]", "[SEP]"], show_progress=False
    )
    tokenizer.train_from_iterator(["some words to learn from"] * 5, trainer)
    return tokenizer


@pytest.mark.parametrize("eos", ["[SEP]", {"content": "[SEP]", "special": True}])
def test_a_tokenizer_of_another_program(make: Make, tmp_path: Path, eos: Any) -> None:
    folder = foreign(tmp_path, word_piece(), eos_token=eos)
    built = make(jsonl(tmp_path / "a.jsonl", "some words"), tokenizer=folder)
    assert built.info["eod_id"] == 1
    assert built.info["backend"] == "tokenizers"
    assert "WordPiece" in built.info["backend_reason"]
    assert IndexedReader(built.path("text_document"))[0][-1] == 1
    assert not built.path("tokenizer", "model.safetensors").exists()


def sentence_piece(folder: Path, kind: str) -> Path:
    """A folder that has a SentencePiece model and no ``tokenizer.json``, called a Llama's."""
    target = folder / kind
    target.mkdir()
    SentencePieceTrainer.train(
        sentence_iterator=(row["text"].replace("\n", " ") for row in read_sample("python-docs")),
        model_prefix=str(target / "tokenizer"),
        model_type=kind,
        vocab_size=600,
        input_sentence_size=2000,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    (target / "tokenizer_config.json").write_text(json.dumps({**settings, "unk_token": "<unk>"}))
    return target


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_sentencepiece_model_is_used_as_it_is(make: Make, tmp_path: Path, kind: str) -> None:
    folder = sentence_piece(tmp_path, kind)
    built = make(jsonl(tmp_path / "a.jsonl", "Return the value."), tokenizer=folder)
    original = SentencePieceProcessor(str(folder / "tokenizer.model"))
    expected = [*original.encode("Return the value."), original.eos_id()]
    assert IndexedReader(built.path("text_document"))[0].tolist() == expected


def test_another_token_may_end_documents(make: Make, tmp_path: Path) -> None:
    built = make(jsonl(tmp_path / "a.jsonl", "one"), eod_token="<|pad|>")
    assert texts_of(built) == ["one<|pad|>"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"has no eos_token to end documents with\n.*eod_token, or set append_eod: false"),
        ({"eod_token": "<eos>"}, "eod_token: the tokenizer has no token '<eos>'"),
    ],
)
def test_a_missing_end_token(
    make: Make, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    folder = foreign(tmp_path, word_piece())
    with pytest.raises(ToolkitError, match=message):
        make(jsonl(tmp_path / "a.jsonl", "one"), tokenizer=folder, **settings)
    assert not list((tmp_path / "run" / "corpus").glob("artifact*"))


def test_a_tokenizer_that_can_not_be_read(make: Make, tmp_path: Path) -> None:
    folder = foreign(tmp_path, word_piece(), eos_token="[SEP]")
    for name, message in (
        ("tokenizer_config.json", r"tokenizer_config\.json: invalid JSON"),
        ("tokenizer.json", r"tokenizer\.json: not a readable tokenizer"),
    ):
        (folder / name).write_text('{"model": ')
        with pytest.raises(DataError, match=message):
            make(jsonl(tmp_path / "a.jsonl", "one"), tokenizer=folder)


def test_vocabularies_with_gaps_and_above_u16(make: Make, tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "<eos>": 1, "far": 69_999}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = foreign(tmp_path, tokenizer, eos_token="<eos>")
    built = make(jsonl(tmp_path / "a.jsonl", "far far"), tokenizer=folder)
    assert (built.info["dtype"], built.info["vocab_size"]) == ("int32", 70_000)
    assert IndexedReader(built.path("text_document"))[0].tolist() == [69_999, 69_999, 1]


def test_a_token_outside_the_vocabulary_names_its_document(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = GigatokenEncoder.encode_batch

    def wrong(self: GigatokenEncoder, texts: list[str]) -> Encoded:
        encoded = right(self, texts)
        if "bad one" in texts:
            encoded.tokens[encoded.lengths[: texts.index("bad one")].sum()] = 70_000
        return encoded

    monkeypatch.setattr(GigatokenEncoder, "encode_batch", wrong)
    monkeypatch.setattr(
        tokenize_shard, "BATCH_DOCUMENTS", 3
    )  # the probe sees the first batch alone
    path = jsonl(tmp_path / "a.jsonl", "one", "two", "three", "", "four", "bad one", "six")
    with pytest.raises(DataError, match=r"a\.jsonl:6: token id 70000 is outside the vocabulary"):
        make(path)
    assert not list((tmp_path / "run" / "corpus").glob("artifact*"))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_that_takes_no_more_leaves_nothing_half_made(
    make: Make, tmp_path: Path, workers: int
) -> None:
    long = jsonl(tmp_path / "a.jsonl", *(f"{n} some words of a line" for n in range(40_000)))
    settings = {"shard_bytes": 1 << 20, "resources": Resources(cpus_per_task=workers)}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as error:
            make(long, **settings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.errno == errno.EFBIG
    assert not list((tmp_path / "run" / "corpus").glob("artifact*"))
    assert not list((tmp_path / "run" / "corpus" / "work" / "shards").glob("0*/*.tmp"))
    assert make(long, **settings).info["counts"]["written"] == 40_000


@pytest.mark.parametrize("size", [1, 2, 7])
def test_batches_change_nothing(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    texts = [f"document {n} " * (n % 5) for n in range(30)]
    path = jsonl(tmp_path / "a.jsonl", *texts)
    expected = [f"{text}<|endoftext|>" for text in texts if text]
    monkeypatch.setattr(tokenize_shard, "BATCH_DOCUMENTS", size)
    assert texts_of(make(path)) == expected


def test_the_backends_make_the_same_files(
    stage_context: Callable[..., StageContext], vocabulary: Artifact
) -> None:
    built = []
    for backend in ("gigatoken", "tokenizers"):
        context = stage_context(backend, "tokenize", vocabulary=vocabulary.folder)
        config = TokenizeConfig(
            sources=["sample:python-docs/held-out"],
            tokenizer="vocabulary",
            backend=backend,  # type: ignore[arg-type]
        )
        built.append(tokenize.run(config, context))
    assert [b.info["backend"] for b in built] == ["gigatoken", "tokenizers"]
    for name in ("text_document.bin", "text_document.idx"):
        assert built[0].path(name).read_bytes() == built[1].path(name).read_bytes()
    rows = read_sample("python-docs/held-out")
    assert texts_of(built[0]) == [f"{row['text']}<|endoftext|>" for row in rows]


SCRIPT = """
import sys
from pathlib import Path
from toolkit.context import Input, StageContext
from toolkit.data.config import TokenizeConfig
from toolkit.data.tokenize import run
folder, tokenizer, source = map(Path, sys.argv[1:])
folder.mkdir()
inputs = {"v": Input("v", tokenizer, "tokenizer", "f")}
config = TokenizeConfig(sources=[str(source)], tokenizer="v", on_error="quarantine")
built = run(config, StageContext("c", "tokenize", folder, "f", inputs))
print([(f.path, f.sha256) for f in built.files], built.info)
"""


def test_two_runs_are_the_same_to_the_byte(tmp_path: Path, vocabulary: Artifact) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name in "cab":
        jsonl(data / f"{name}.jsonl", *(f"{name} {n} some words" for n in range(200)), "")
        (data / f"bad-{name}.jsonl").write_bytes(b'{"text": "fine"}\n{"text"\n')
    found = set()
    for number, (seed, threads) in enumerate([("0", "1"), ("1", "3")]):
        done = subprocess.run(
            [*(sys.executable, "-c", SCRIPT), tmp_path / str(number), vocabulary.folder, data],
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "PYTHONHASHSEED": seed,
                "RAYON_NUM_THREADS": threads,
            },
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        found.add(done.stdout)
    assert len(found) == 1


def test_shakespeare(make: Make, shared_data: Path) -> None:
    path = shared_data / "tinyshakespeare.txt"
    built = make(path)
    assert built.info["counts"]["written"] == 1
    assert texts_of(built) == [path.read_text() + "<|endoftext|>"]


def test_progress_reaches_the_end(make: Make, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", *["some words"] * 100)
    make(path)
    progress = json.loads((tmp_path / "run" / "corpus" / "progress.json").read_text())
    assert progress["done"] == progress["total"] == path.stat().st_size / 1e6
    assert progress["shown"]["documents"] == 100


def test_append_token() -> None:
    encoded = Encoded(np.array([5, 6, 7], np.uint32), np.array([2, 0, 1]))
    ended = tokenize_shard.append_token(encoded, 9)
    assert ended.tokens.tolist() == [5, 6, 9, 9, 7, 9]
    assert ended.lengths.tolist() == [3, 1, 2]
