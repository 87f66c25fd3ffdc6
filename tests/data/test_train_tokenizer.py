"""The ``train-tokenizer`` stage: exact size, Hugging Face's format, one answer for one input."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from transformers import AutoTokenizer

from toolkit.artifacts import Artifact, sha256
from toolkit.context import StageContext
from toolkit.data.config import TrainTokenizerConfig
from toolkit.data.tokenizer import run
from toolkit.errors import DataError

Context = Callable[..., StageContext]
ROOT = Path(__file__).resolve().parents[2]


def train(context: StageContext, *sources: Path | str, **settings: Any) -> Artifact:
    settings = {"vocab_size": 400, **settings}
    config = TrainTokenizerConfig(sources=[str(s) for s in sources], **settings)
    return run(config, context)


def test_the_vocabulary_has_the_size_that_was_asked_for(vocabulary: Artifact) -> None:
    tokenizer = AutoTokenizer.from_pretrained(vocabulary.folder)
    assert len(tokenizer) == vocabulary.info["vocab_size"] == 2048
    assert sorted(tokenizer.get_vocab().values()) == list(range(2048))
    assert vocabulary.info["sha256"] == sha256(vocabulary.path("tokenizer.json"))
    assert 2.5 < vocabulary.info["bytes_per_token"] < 5
    assert vocabulary.type == "tokenizer"


def test_hugging_face_opens_it(vocabulary: Artifact) -> None:
    tokenizer = AutoTokenizer.from_pretrained(vocabulary.folder)
    assert tokenizer.eos_token == vocabulary.info["eos_token"] == "<|endoftext|>"
    assert tokenizer.eos_token_id == vocabulary.info["eod_id"] == 0
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    special = {"<|endoftext|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"}
    assert set(tokenizer.all_special_tokens) == special
    text = " Any\ttext: na\u00efve \u4e2d\u6587 \U0001f600,  x  !\n\n'it's\x00\r\n"
    ids = tokenizer(text)["input_ids"]
    assert not set(ids) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(ids) == text


CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello\n"},
    {"role": "assistant", "content": " Hi, <you>\n"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "Bye."},
]


@pytest.mark.parametrize(
    ("template", "text", "answers"),
    [
        (
            "roles",
            "<|system|>Be brief.<|user|>Hello\n<|assistant|> Hi, <you>\n<|endoftext|>"
            "<|user|>Bye<|assistant|>Bye.<|endoftext|>",
            " Hi, <you>\n<|endoftext|>Bye.<|endoftext|>",
        ),
        (
            "chatml",
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
            "<|im_start|>assistant\nHi, <you><|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
            "<|im_start|>assistant\nBye.<|im_end|>\n",
            "Hi, <you><|im_end|>Bye.<|im_end|>",
        ),
    ],
)
def test_the_chat_template_marks_answers_and_what_ends_them(
    stage_context: Context, shared_text: Path, template: str, text: str, answers: str
) -> None:
    built = train(stage_context("v", "train-tokenizer"), shared_text, chat_template=template)
    tokenizer = AutoTokenizer.from_pretrained(built.folder)
    encoded = tokenizer.apply_chat_template(
        CHAT, return_dict=True, return_assistant_tokens_mask=True
    )
    ids, mask = encoded["input_ids"], encoded["assistant_masks"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m]) == answers
    assert tokenizer.eos_token == built.info["eos_token"]
    assert answers.endswith(tokenizer.eos_token)
    prompt = tokenizer.apply_chat_template(CHAT[:4], tokenize=False, add_generation_prompt=True)
    assert text.startswith(prompt)
    assert text.removeprefix(prompt).startswith("Bye.")


def test_an_unknown_role_is_refused(vocabulary: Artifact) -> None:
    tokenizer = AutoTokenizer.from_pretrained(vocabulary.folder)
    with pytest.raises(Exception, match="no role tool; there are system, user, assistant"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}])


@pytest.fixture
def shared_text(tmp_path: Path) -> Path:
    """Text with more pairs to merge than the small vocabularies here take."""
    path = tmp_path / "text.txt"
    path.write_text((ROOT / "toolkit" / "data" / "readers.py").read_text())
    return path


SCRIPT = """
import sys
from pathlib import Path
from toolkit.artifacts import sha256
from toolkit.context import StageContext
from toolkit.data.config import TrainTokenizerConfig
from toolkit.data.tokenizer import run
folder = Path(sys.argv[1])
folder.mkdir()
config = TrainTokenizerConfig(sources=[sys.argv[2]], vocab_size=600)
print(run(config, StageContext("v", "train-tokenizer", folder, "f")).info["sha256"])
"""


def test_threads_and_hash_seeds_change_nothing(tmp_path: Path, shared_text: Path) -> None:
    found = set()
    for number, (seed, threads) in enumerate([("0", "1"), ("1", "3"), ("2", "2")]):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(tmp_path / str(number)), str(shared_text)],
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "PYTHONHASHSEED": seed,
                "RAYON_NUM_THREADS": threads,
                "TOKENIZERS_PARALLELISM": "true",
            },
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        found.add(done.stdout)
    assert len(found) == 1


def test_too_little_text_gives_fewer_tokens_and_says_so(
    stage_context: Context, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.txt").write_text("a little text, a little text")
    with caplog.at_level(logging.WARNING):
        built = train(stage_context("v", "train-tokenizer"), tmp_path / "a.txt", vocab_size=5000)
    assert built.info["requested_vocab_size"] == 5000
    assert 261 < built.info["vocab_size"] < 300
    assert len(AutoTokenizer.from_pretrained(built.folder)) == built.info["vocab_size"]
    assert f"the text gives {built.info['vocab_size']} tokens, not the 5000" in caplog.text


def test_max_bytes_takes_something_of_every_file(stage_context: Context, tmp_path: Path) -> None:
    words = {"a": "apple", "b": "banana", "c": "cherry"}
    for name, word in words.items():
        lines = [json.dumps({"text": f"{word} {word}"}) for _ in range(1000)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    built = train(stage_context("v", "train-tokenizer"), tmp_path / "*.jsonl", max_bytes=600)
    assert built.info["text_bytes"] <= 600
    tokens = AutoTokenizer.from_pretrained(built.folder).get_vocab()
    assert {f"\u0120{word}" for word in words.values()} <= set(tokens)


@pytest.mark.parametrize("sample_first", [True, False])
def test_max_bytes_takes_something_of_samples_and_of_files(
    stage_context: Context, tmp_path: Path, sample_first: bool
) -> None:
    lines = [json.dumps({"text": "xylophone xylophone"}) for _ in range(500)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    sources: list[Path | str] = [tmp_path / "a.jsonl", "sample:python-docs"]
    context = stage_context("v", "train-tokenizer")
    ordered = sources[::-1] if sample_first else sources
    built = train(context, *ordered, max_bytes=12_000, vocab_size=500)
    assert 11_000 < built.info["text_bytes"] <= 12_000
    tokens = AutoTokenizer.from_pretrained(built.folder).get_vocab()
    assert {"\u0120xylophone", "\u0120the"} <= set(tokens)


def test_files_take_what_a_small_sample_leaves(stage_context: Context, tmp_path: Path) -> None:
    lines = [json.dumps({"output": "word " * 1000}) for _ in range(3000)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    settings = {"vocab_size": 300, "text_key": "output"}
    context = stage_context("v", "train-tokenizer")
    whole = train(context, "sample:python-questions", **settings).info["text_bytes"]
    context = stage_context("w", "train-tokenizer")
    sources = ("sample:python-questions", tmp_path / "a.jsonl")
    built = train(context, *sources, max_bytes=whole * 3, **settings)
    assert built.info["text_bytes"] == whole * 3


def test_max_bytes_cuts_a_long_text_between_characters(
    stage_context: Context, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("\u4e2d" * 1000)
    built = train(stage_context("v", "train-tokenizer"), tmp_path / "a.txt", max_bytes=100)
    assert built.info["text_bytes"] == 99


def test_further_special_tokens(stage_context: Context, shared_text: Path) -> None:
    extra = ["<|tool|>", "<|image|>"]
    context = stage_context("v", "train-tokenizer")
    built = train(context, shared_text, additional_special_tokens=extra)
    tokenizer = AutoTokenizer.from_pretrained(built.folder)
    assert set(extra) <= set(tokenizer.all_special_tokens)
    assert len(tokenizer) == 400
    assert len(tokenizer("<|tool|>")["input_ids"]) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vocab_size": 260}, "256 bytes and 5 special tokens need at least 261"),
        ({"vocab_size": 100}, "greater than or equal to 256"),
        ({"additional_special_tokens": ["<|user|>"]}, r"repeats <\|user\|>; there already are"),
        ({"additional_special_tokens": [" "]}, "blank token"),
        ({"chat_template": "llama"}, "'roles' or 'chatml'"),
        ({"sources": []}, "at least 1 item"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainTokenizerConfig(**{"sources": ["a.txt"], "vocab_size": 4096, **settings})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": ""}\n{"text": " \\n"}\n', "the sources hold no text"),
        (b'{"text": "a"}\n{"txt": "b"}\n', r"a\.jsonl:2: there is no key 'text'.*'txt'"),
        (b'{"text": "a"}\n{"text": "b"\n', r"a\.jsonl:2: invalid JSON"),
    ],
)
def test_bad_sources_leave_nothing(
    stage_context: Context, tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    context = stage_context("v", "train-tokenizer")
    with pytest.raises(DataError, match=message):
        train(context, tmp_path / "a.jsonl")
    assert not list(context.folder.glob("artifact*"))
