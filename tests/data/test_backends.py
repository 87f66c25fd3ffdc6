"""Which backend is chosen, and the one line that says why."""

import logging
import sys
from pathlib import Path

import pytest
from some_tokenizers import GIGATOKEN_HAS, KINDS, sentencepiece
from tokenizers import Tokenizer, normalizers, pre_tokenizers

from toolkit.data.backends import choose_backend
from toolkit.data.encoders import Encoded, GigatokenEncoder
from toolkit.data.tokenizer_folder import TokenizerFolder, open_tokenizer
from toolkit.errors import ToolkitError


@pytest.fixture(scope="module")
def tokenizers(tokenizer_folders: dict[str, Path]) -> dict[str, TokenizerFolder]:
    return {kind: open_tokenizer(folder) for kind, folder in tokenizer_folders.items()}


@pytest.mark.parametrize("kind", GIGATOKEN_HAS)
def test_gigatoken_is_chosen_where_it_agrees(
    kind: str, tokenizers: dict[str, TokenizerFolder], caplog: pytest.LogCaptureFixture
) -> None:
    for backend in ("auto", "gigatoken"):
        name, why = choose_backend(tokenizers[kind], ["some", "documents"], backend)
        assert name == "gigatoken"
        assert why.startswith(f"equal to {tokenizers[kind].library} on ")
    assert not caplog.messages


@pytest.mark.parametrize("kind", KINDS)
def test_the_library_can_be_asked_for(kind: str, tokenizers: dict[str, TokenizerFolder]) -> None:
    library = tokenizers[kind].library
    assert choose_backend(tokenizers[kind], ["some"], library) == (library, "asked for")
    other = "tiktoken" if library != "tiktoken" else "sentencepiece"
    with pytest.raises(ToolkitError, match=f"backend {other} does not read this tokenizer"):
        choose_backend(tokenizers[kind], ["some"], other)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("other word piece", 'doesn\'t take this tokenizer (Unsupported model type "WordPiece"'),
        ("sentencepiece-unigram", "doesn't take this tokenizer (only BPE sentencepiece models"),
        ("lower case", "doesn't take this tokenizer (Unsupported normalizer type"),
        ("other pattern", r"doesn't take this tokenizer (it does not split by the pattern '\\w+|"),
        ("no byte fallback", "doesn't take this tokenizer (only byte_fallback sentencepiece"),
    ],
)
def test_a_tokenizer_it_lacks_falls_back_with_one_line_that_says_why(
    kind: str,
    reason: str,
    tokenizers: dict[str, TokenizerFolder],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tokenizer = tokenizers.get(kind) or changed(kind, tokenizers, tmp_path)
    with caplog.at_level(logging.WARNING):
        name, why = choose_backend(tokenizer, ["Some words"])
    assert name == tokenizer.library
    assert reason in why
    assert len(caplog.messages) == 1
    assert why.removeprefix("gigatoken can't be used: ") in caplog.messages[0]
    assert "\n" not in caplog.messages[0]
    with pytest.raises(ToolkitError) as refused:
        choose_backend(tokenizer, ["Some words"], "gigatoken")
    assert "backend gigatoken can't be used: it doesn't take" in str(refused.value)


def changed(kind: str, tokenizers: dict[str, TokenizerFolder], tmp_path: Path) -> TokenizerFolder:
    if kind == "no byte fallback":
        return open_tokenizer(sentencepiece(tmp_path, "bpe", byte_fallback=False))
    if kind == "other word piece":
        tokenizer = Tokenizer.from_str(tokenizers["word-piece"].json)
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        return open_tokenizer(tmp_path)
    if kind == "lower case":
        tokenizer = Tokenizer.from_str(tokenizers["byte-level"].json)
        tokenizer.normalizer = normalizers.Lowercase()
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        return open_tokenizer(tmp_path)
    ranks = tokenizers["tiktoken"].files[0].read_bytes()
    (tmp_path / "own.tiktoken").write_bytes(ranks)
    (tmp_path / "tiktoken.json").write_text(r'{"pattern": "\\w+|\\W"}')
    return open_tokenizer(tmp_path)


def test_berts_word_piece(
    tokenizers: dict[str, TokenizerFolder], caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = tokenizers["word-piece"]
    name, why = choose_backend(tokenizer, ["Some words"])
    assert name == "word-piece"
    assert why.startswith("equal to tokenizers on ")
    assert not caplog.messages
    with pytest.raises(ToolkitError, match=r"backend gigatoken can't be used.*WordPiece"):
        choose_backend(tokenizer, ["Some words"], "gigatoken")
    assert choose_backend(tokenizer, ["a"], parse_special_tokens=True)[0] == "tokenizers"


def test_one_wrong_token_in_one_document_is_enough_to_fall_back(
    tokenizers: dict[str, TokenizerFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = GigatokenEncoder.encode_batch

    def wrong(self: GigatokenEncoder, texts: list[str]) -> Encoded:
        encoded = right(self, texts)
        for index, text in enumerate(texts):
            if "odd" in text:
                encoded.tokens[encoded.lengths[:index].sum()] ^= 1
        return encoded

    monkeypatch.setattr(GigatokenEncoder, "encode_batch", wrong)
    tokenizer = tokenizers["byte-level"]
    name, why = choose_backend(tokenizer, ["even"] * 100 + ["an odd one", "even"])
    assert name == "tokenizers"
    assert "its tokens differ on 'an odd one'" in why
    assert choose_backend(tokenizer, ["even"] * 100)[0] == "gigatoken"


class PanicException(BaseException):
    pass


def test_a_panic_is_a_reason_to_fall_back(
    tokenizers: dict[str, TokenizerFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(error: BaseException) -> None:
        raise error

    for error in (PanicException("index out of bounds"), KeyboardInterrupt()):
        monkeypatch.setattr(GigatokenEncoder, "encode_batch", lambda *_, e=error: fail(e))
        if isinstance(error, KeyboardInterrupt):
            with pytest.raises(KeyboardInterrupt):
                choose_backend(tokenizers["byte-level"], ["a"])
        else:
            name, why = choose_backend(tokenizers["byte-level"], ["a"])
            assert name == "tokenizers"
            assert "breaks off on a probe text (index out of bounds)" in why


def test_a_difference_between_batches_is_found(
    tokenizers: dict[str, TokenizerFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = GigatokenEncoder.encode_batch

    def wrong(self: GigatokenEncoder, texts: list[str]) -> Encoded:
        encoded = right(self, texts)
        return Encoded(encoded.tokens, encoded.lengths[::-1]) if len(texts) > 1 else encoded

    monkeypatch.setattr(GigatokenEncoder, "encode_batch", wrong)
    assert choose_backend(tokenizers["byte-level"], ["a"]) == (
        "tokenizers",
        "gigatoken can't be used: its tokens differ between batches",
    )


def test_without_gigatoken_installed(
    tokenizers: dict[str, TokenizerFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "gigatoken"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    for kind in GIGATOKEN_HAS:
        name, why = choose_backend(tokenizers[kind], ["some"])
        assert name == tokenizers[kind].library
        assert "not installed" in why


def test_special_tokens_that_are_parsed(tokenizers: dict[str, TokenizerFolder]) -> None:
    chosen = choose_backend(tokenizers["byte-level"], ["some"], parse_special_tokens=True)
    assert chosen[0] == "gigatoken"
    chosen = choose_backend(tokenizers["tekken"], ["some"], parse_special_tokens=True)
    assert chosen[0] == "tiktoken"
    with pytest.raises(ToolkitError, match="finds no special tokens"):
        choose_backend(tokenizers["sentencepiece-bpe"], ["some"], parse_special_tokens=True)


def test_no_documents(tokenizers: dict[str, TokenizerFolder]) -> None:
    assert choose_backend(tokenizers["byte-level"], [])[0] == "gigatoken"
