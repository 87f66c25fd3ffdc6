"""Encoders: each gives the tokens of the tokenizer's own library, and special tokens stay text."""

import json
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from some_tokenizers import GIGATOKEN_HAS, KINDS, SPECIAL, texts
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers, processors

from toolkit.data import gigatoken_encoder, word_piece
from toolkit.data.backends import HARD_TEXTS, probe_texts
from toolkit.data.encoders import Encoded, Encoder, TokenizersEncoder, open_encoder
from toolkit.data.gigatoken_encoder import (
    GIGATOKEN_SCHEMES,
    SEPARATOR,
    GigatokenEncoder,
    open_gigatoken,
    split,
)
from toolkit.data.tokenizer_folder import TokenizerFolder, open_tokenizer
from toolkit.errors import DataError, ToolkitError

ROOT = Path(__file__).resolve().parents[2]
FAST = {**dict.fromkeys(GIGATOKEN_HAS, "gigatoken"), "word-piece": "word-piece"}
EVERY = [(kind, False) for kind in KINDS] + [(kind, True) for kind in FAST]


@pytest.fixture(scope="module")
def tokenizers(tokenizer_folders: dict[str, Path]) -> dict[str, TokenizerFolder]:
    return {kind: open_tokenizer(folder) for kind, folder in tokenizer_folders.items()}


@pytest.fixture(scope="module")
def opened(tokenizers: dict[str, TokenizerFolder]) -> dict[tuple[str, bool], Encoder]:
    """Every kind's encoder, by its own library and (True) by what is faster."""
    return {
        (kind, fast): open_encoder(t, FAST[kind] if fast else t.library)
        for kind, fast in EVERY
        for t in [tokenizers[kind]]
    }


def of_tokenizers(tokenizer: TokenizerFolder) -> Callable[[str], list[int]]:
    inner = Tokenizer.from_str(tokenizer.json)
    inner.encode_special_tokens = True
    return lambda text: list(inner.encode(text, add_special_tokens=False).ids)


def of_tiktoken(tokenizer: TokenizerFolder) -> Callable[[str], list[int]]:
    """tiktoken as mistral-common uses it for tekken: ranks from 0, the offset added after."""
    from tiktoken import Encoding

    first = min(tokenizer.ranks.ids.values())
    ranks = {token: identity - first for token, identity in tokenizer.ranks.ids.items()}
    encoding = Encoding(
        "test", pat_str=tokenizer.ranks.pattern, mergeable_ranks=ranks, special_tokens={}
    )
    return lambda text: [identity + first for identity in encoding.encode_ordinary(text)]


def oracle(tokenizer: TokenizerFolder) -> Callable[[str], list[int]]:
    if tokenizer.kind == "sentencepiece":
        processor = SentencePieceProcessor(str(tokenizer.files[0]))
        return lambda text: list(processor.encode(text))
    return (of_tokenizers if tokenizer.kind == "tokenizers" else of_tiktoken)(tokenizer)


def assert_gives(encoded: Encoded, expected: list[list[int]]) -> None:
    assert encoded.lengths.tolist() == list(map(len, expected))
    assert encoded.tokens.tolist() == [token for tokens in expected for token in tokens]
    assert (encoded.tokens.dtype, encoded.lengths.dtype) == (np.uint32, np.int64)


@pytest.mark.parametrize("which", EVERY, ids=str)
def test_equal_to_the_library(
    which: tuple[str, bool],
    tokenizers: dict[str, TokenizerFolder],
    opened: dict[tuple[str, bool], Encoder],
) -> None:
    expected = oracle(tokenizers[which[0]])
    given = [*HARD_TEXTS, "", *texts()[::4], "\n", "a" * 3000, ""]
    assert_gives(opened[which].encode_batch(given), [expected(text) for text in given])
    for few in ([], [""], ["", ""], ["one"]):
        assert_gives(opened[which].encode_batch(few), [expected(text) for text in few])


PIECES = st.sampled_from(
    [*" \n\t'._-1", "  ", "the", "don't", "I'LL", "\u4e2d", "e\u0301", "\U0001f600", *SPECIAL]
)


@pytest.mark.parametrize("which", EVERY, ids=str)
@settings(deadline=None, max_examples=60, derandomize=True)
@given(batch=st.lists(st.lists(PIECES | st.text(max_size=4)).map("".join), max_size=5))
def test_equal_to_the_library_on_any_text(
    batch: list[str],
    which: tuple[str, bool],
    tokenizers: dict[str, TokenizerFolder],
    opened: dict[tuple[str, bool], Encoder],
) -> None:
    expected = oracle(tokenizers[which[0]])
    assert_gives(opened[which].encode_batch(batch), [expected(text) for text in batch])


SIDE_BY_SIDE = "1aT'\n\r ./"
"""Characters any two of which are a token: where the pattern splits them shows."""


@pytest.fixture(scope="module")
def by_pattern(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Encoder, Encoder]]:
    """tiktoken and gigatoken for each pattern that gigatoken has a name for."""
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += [f"{one}{two}".encode() for one in SIDE_BY_SIDE for two in SIDE_BY_SIDE]
    lines = [f"{b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)]
    found = []
    for pattern in GIGATOKEN_SCHEMES:
        folder = tmp_path_factory.mktemp("pattern")
        (folder / "own.tiktoken").write_text("".join(lines))
        (folder / "tiktoken.json").write_text(json.dumps({"pattern": pattern}))
        tokenizer = open_tokenizer(folder)
        found.append((open_encoder(tokenizer, "tiktoken"), open_encoder(tokenizer, "gigatoken")))
    return found


@settings(deadline=None, max_examples=200, derandomize=True)
@given(batch=st.lists(st.text() | st.text(SIDE_BY_SIDE + "T\u0301\u4e2d\u01c5"), max_size=5))
def test_gigatoken_splits_by_the_pattern(
    batch: list[str], by_pattern: list[tuple[Encoder, Encoder]]
) -> None:
    for library, fast in by_pattern:
        expected, found = library.encode_batch(batch), fast.encode_batch(batch)
        assert found.lengths.tolist() == expected.lengths.tolist()
        assert found.tokens.tolist() == expected.tokens.tolist()


def test_patterns_differ(by_pattern: list[tuple[Encoder, Encoder]]) -> None:
    # So that the test above can fail.
    texts = ["11111", "aa'T", "T\r\n a", "a.\n/", " 1"]
    found = {tuple(fast.encode_batch(texts).tokens.tolist()) for _, fast in by_pattern}
    assert len(found) == len(GIGATOKEN_SCHEMES)


@pytest.mark.parametrize("which", EVERY, ids=str)
def test_special_tokens_in_a_text_stay_text(
    which: tuple[str, bool],
    tokenizers: dict[str, TokenizerFolder],
    opened: dict[tuple[str, bool], Encoder],
) -> None:
    tokenizer = tokenizers[which[0]]
    special = tokenizer.special_tokens()
    assert special
    ids = {tokenizer.vocabulary[token] for token in special}
    for token in special:
        found = opened[which].encode_batch([f"before {token} after", token, f"{token}{token}"])
        # WordPiece knows no brackets: it gives its unknown token for them, as for any such word.
        unknown = {tokenizer.vocabulary["[UNK]"]} if which[0] == "word-piece" else set()
        assert not set(found.tokens.tolist()) & (ids - unknown)
        assert (found.lengths > 0).all()


@pytest.mark.parametrize(
    ("kind", "fast"),
    [
        *(("byte-level", True), ("byte-level", False), ("word-piece", False)),
        *(("tiktoken", False), ("tekken", False)),
    ],
)
def test_special_tokens_are_parsed_if_asked(
    kind: str, fast: bool, tokenizers: dict[str, TokenizerFolder]
) -> None:
    tokenizer = tokenizers[kind]
    backend = "gigatoken" if fast else tokenizer.library
    encoder = open_encoder(tokenizer, backend, parse_special_tokens=True)
    for token in tokenizer.special_tokens()[:3]:
        identity = tokenizer.vocabulary[token]
        parts = encoder.encode_batch(["some", "thing"]).tokens.tolist()
        assert encoder.encode_batch([f"some{token}thing"]).tokens.tolist().count(identity) == 1
        assert len(encoder.encode_batch([f"some{token}thing"]).tokens) == len(parts) + 1


def test_sentencepiece_parses_none(tokenizers: dict[str, TokenizerFolder]) -> None:
    with pytest.raises(ToolkitError, match=r"finds no special tokens in text\n.*tokenizer\.json"):
        open_encoder(tokenizers["sentencepiece-bpe"], "sentencepiece", parse_special_tokens=True)


def test_user_defined_symbols_are_pieces(
    tokenizers: dict[str, TokenizerFolder], opened: dict[tuple[str, bool], Encoder]
) -> None:
    identity = tokenizers["sentencepiece-bpe"].vocabulary["<user>"]
    for fast in (False, True):
        assert identity in opened["sentencepiece-bpe", fast].encode_batch(["a<user>b"]).tokens


def test_another_library_is_refused(tokenizers: dict[str, TokenizerFolder]) -> None:
    with pytest.raises(ToolkitError, match=r"backend tiktoken does not read(.|\n)*or tokenizers"):
        open_encoder(tokenizers["byte-level"], "tiktoken")


def byte_level_json(tokenizers: dict[str, TokenizerFolder]) -> str:
    content = tokenizers["byte-level"].json
    assert content is not None
    return content


def folder_of(tmp_path: Path, tokenizer: Tokenizer) -> TokenizerFolder:
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return open_tokenizer(tmp_path)


@pytest.mark.parametrize("changes", [{}, {"lowercase": False}, {"strip_accents": False}])
def test_word_pieces_of_hard_texts(
    changes: dict[str, bool], tokenizers: dict[str, TokenizerFolder], tmp_path: Path
) -> None:
    raw = json.loads(tokenizers["word-piece"].json or "")
    raw["normalizer"] |= changes
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    folder = open_tokenizer(tmp_path)
    every = "".join(chr(code) for code in range(0x3100) if code % 3 or code < 0x250)
    spaced = " ".join(every)
    batch = [
        every,
        spaced,
        "a\x0bb\x1cc\x85d",
        "\u4e2d\u6587 mixed\u3000text",
        "x" * 99 + " " + "y" * 101,
    ]
    batch += [
        "unaffable\u0301 \u0130stanbul STRASSE \u1e9e",
        "tab\tnew\r\nline\x00",
        "\xa0a\xa0",
        "a\u200bb",
    ]
    expected = oracle(folder)
    encoder = open_encoder(folder, "word-piece")
    for _ in range(2):
        assert_gives(encoder.encode_batch(batch), [expected(text) for text in batch])


def test_word_pieces_forget(
    tokenizers: dict[str, TokenizerFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(word_piece, "LIMIT", 5)
    monkeypatch.setattr(word_piece, "LONGEST", 8)
    encoder = open_encoder(tokenizers["word-piece"], "word-piece")
    expected = oracle(tokenizers["word-piece"])
    batch = [f"word{i} na\u00efve{i} and averylongword{i}" for i in range(40)]
    assert_gives(encoder.encode_batch(batch), [expected(text) for text in batch])
    memory = encoder._words._memory  # type: ignore[attr-defined]
    assert 0 < len(memory) <= 5
    assert max(map(len, memory)) <= 8


def test_tiktoken_names_a_text_that_it_can_not_split(
    opened: dict[tuple[str, bool], Encoder],
) -> None:
    blank = "It begins" + " " * 1_000_000
    with pytest.raises(DataError, match=r"split a text of 1,000,009 char.*begins 'It begins  "):
        opened["tekken", False].encode_batch(["fine", blank])
    assert opened["tekken", True].encode_batch(["fine", blank]).lengths[1] > 0


def test_text_that_is_an_added_but_no_special_token(
    tokenizers: dict[str, TokenizerFolder], tmp_path: Path
) -> None:
    tokenizer = Tokenizer.from_str(byte_level_json(tokenizers))
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    folder = folder_of(tmp_path, tokenizer)
    for backend in ("tokenizers", "gigatoken"):
        tokens = open_encoder(folder, backend).encode_batch(["a <think> b", "c"]).tokens
        assert folder.vocabulary["<think>"] in tokens


def test_truncation_padding_and_begin_of_text_are_left_aside(
    tokenizers: dict[str, TokenizerFolder], tmp_path: Path
) -> None:
    changed = Tokenizer.from_str(byte_level_json(tokenizers))
    changed.enable_truncation(max_length=3)
    changed.enable_padding(length=50)
    changed.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    batch = ["a rather long text", "", "another"]
    plain = TokenizersEncoder(changed).encode_batch(batch)
    assert plain.lengths[0] > 3
    folder = folder_of(tmp_path, changed)
    for backend in ("tokenizers", "gigatoken"):
        found = open_encoder(folder, backend).encode_batch(batch)
        assert np.array_equal(found.tokens, plain.tokens)
        assert np.array_equal(found.lengths, plain.lengths)


# gigatoken: one text for a batch, and a bound on its cache


@pytest.mark.parametrize("kind", GIGATOKEN_HAS)
def test_a_text_with_the_separator_in_it(kind: str, tokenizers: dict[str, TokenizerFolder]) -> None:
    encoder = open_gigatoken(tokenizers[kind])
    expected = oracle(tokenizers[kind])
    between = [SEPARATOR.format(number) for number in range(1, 5)]
    for batch in (
        ["one", f"two {between[0]} three", ""],
        [between[0]],
        ["", *between, "x"],
        [between[0][:-1], "x", between[0][1:], between[1][:5], between[1][5:]],
    ):
        assert_gives(encoder.encode_batch(batch), [expected(text) for text in batch])


def test_split_at_separators() -> None:
    tokens = np.array([9, 1, 2, 9, 9, 3], np.uint32)
    assert_gives(split(tokens, 9), [[], [1, 2], [], [3]])
    assert_gives(split(np.array([1], np.uint32), 9), [[1]])


@pytest.mark.parametrize("change", ["prefix space", "nfc", "stripped token"])
def test_texts_stay_apart(
    change: str, tokenizers: dict[str, TokenizerFolder], tmp_path: Path
) -> None:
    tokenizer = Tokenizer.from_str(byte_level_json(tokenizers))
    if change == "prefix space":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    elif change == "nfc":
        tokenizer.normalizer = normalizers.NFC()
    else:
        tokenizer.add_tokens([AddedToken("<x>", lstrip=True, rstrip=True, normalized=False)])
    folder = folder_of(tmp_path, tokenizer)
    batch = ["one", " two", "e\u0301", "\u0301e", "\n ", "<x>", "a <x> ", " <x>", "", "x  "]
    found = open_encoder(folder, "gigatoken").encode_batch(batch)
    assert_gives(found, [oracle(folder)(text) for text in batch])


def test_ids_with_gaps(tokenizers: dict[str, TokenizerFolder], tmp_path: Path) -> None:
    raw = json.loads(byte_level_json(tokenizers))
    raw["added_tokens"][-1]["id"] = raw["model"]["vocab"][SPECIAL[-1]] = 5000
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    folder = open_tokenizer(tmp_path)
    assert folder.vocab_size == 5001
    batch = ["one", "two", SPECIAL[-1]]
    expected = oracle(folder)
    found = open_encoder(folder, "gigatoken").encode_batch(batch)
    assert_gives(found, [expected(text) for text in batch])


def test_the_cache_is_dropped_when_the_process_grew(
    tokenizers: dict[str, TokenizerFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = open_gigatoken(tokenizers["byte-level"])
    expected = encoder.encode_batch(["some text"]).tokens.tolist()
    first = encoder._tokenizer
    grown = gigatoken_encoder.resident_bytes() + gigatoken_encoder.CACHE_BYTES
    monkeypatch.setattr(gigatoken_encoder, "resident_bytes", lambda: grown - 10 * 2**20)
    assert encoder.encode_batch(["some text"]).tokens.tolist() == expected
    assert encoder._tokenizer is first
    monkeypatch.setattr(gigatoken_encoder, "resident_bytes", lambda: grown + 100 * 2**20)
    assert encoder.encode_batch(["some text"]).tokens.tolist() == expected
    assert encoder._tokenizer is not first
    second = encoder._tokenizer
    encoder.encode_batch(["some text"])
    assert encoder._tokenizer is second


def test_memory_is_read() -> None:
    before = gigatoken_encoder.resident_bytes()
    held = np.ones(8 << 20, np.int64)
    assert gigatoken_encoder.resident_bytes() - before > 0.9 * held.nbytes


SCRIPT = """
import sys
from pathlib import Path
from toolkit.data.encoders import open_encoder
from toolkit.data.tokenizer_folder import find_tokenizer
heavy = {"tokenizers", "gigatoken", "sentencepiece", "tiktoken", "transformers", "torch", "pyarrow"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
encoder = open_encoder(find_tokenizer(Path(sys.argv[1])), sys.argv[2])
assert encoder.encode_batch(["some text", "more"]).lengths.sum()
print(*sorted((heavy | {"awkward"}) & set(sys.modules)))
"""


@pytest.mark.parametrize(
    ("kind", "backend"),
    [("byte-level", "gigatoken"), ("tekken", "gigatoken"), ("sentencepiece-bpe", "sentencepiece")],
)
def test_a_worker_imports_its_library_alone(
    kind: str, backend: str, tokenizers: dict[str, TokenizerFolder]
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tokenizers[kind].folder), backend],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.split() == [backend]


def test_the_probe_has_every_sort_of_text(tokenizers: dict[str, TokenizerFolder]) -> None:
    many = [f"{i} " * 5000 for i in range(500)]
    found = probe_texts(tokenizers["byte-level"], many)
    assert set(HARD_TEXTS) < set(found)
    assert "a <|endoftext|>b<|endoftext|>" in found
    assert found[-1].startswith("127 ")
    assert sum(map(len, found)) < 150_000
    assert isinstance(open_gigatoken(tokenizers["byte-level"]), GigatokenEncoder)
