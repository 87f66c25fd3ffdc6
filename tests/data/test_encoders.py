"""gigatoken where it equals ``tokenizers``, which is the reference, and only there."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import (
    AddedToken,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from toolkit.artifacts import Artifact
from toolkit.data.encoders import (
    HARD_TEXTS,
    Encoded,
    GigatokenEncoder,
    TokenizersEncoder,
    choose_encoder,
)
from toolkit.data.samples import read_sample
from toolkit.errors import ToolkitError


@pytest.fixture
def tokenizer_json(vocabulary: Artifact) -> str:
    return vocabulary.path("tokenizer.json").read_text()


def assert_equal(one: Encoded, two: Encoded) -> None:
    assert np.array_equal(one.lengths, two.lengths)
    assert np.array_equal(one.tokens, two.tokens)
    assert one.tokens.dtype == two.tokens.dtype == np.uint32


def assert_same(texts: list[str], tokenizer_json: str) -> None:
    reference, fast = TokenizersEncoder(tokenizer_json), GigatokenEncoder(tokenizer_json)
    assert_equal(reference.encode_batch(texts), fast.encode_batch(texts))


def test_equal_on_the_sample_documents(tokenizer_json: str) -> None:
    assert_same([row["text"] for row in read_sample("python-docs")], tokenizer_json)


def test_equal_on_shakespeare(tokenizer_json: str, shared_data: Path) -> None:
    text = (shared_data / "tinyshakespeare.txt").read_text()
    assert_same([text, *text.split("\n\n"), ""], tokenizer_json)


def test_equal_on_hard_texts_and_no_texts(tokenizer_json: str) -> None:
    assert_same([*HARD_TEXTS, "", "", "\n", "a" * 5000], tokenizer_json)
    assert_same([""], tokenizer_json)
    assert_same([], tokenizer_json)


@pytest.mark.parametrize("encoder", [TokenizersEncoder, GigatokenEncoder])
def test_a_special_token_in_a_text_stays_text(
    encoder: Callable[[str], TokenizersEncoder | GigatokenEncoder], tokenizer_json: str
) -> None:
    tokenizer = Tokenizer.from_str(tokenizer_json)
    special = {t.content: i for i, t in tokenizer.get_added_tokens_decoder().items() if t.special}
    text = "".join(f"before {content} after" for content in special) + "<|endoftext|>"
    encoded = encoder(tokenizer_json).encode_batch([text, "<|endoftext|>"])
    assert not set(encoded.tokens.tolist()) & set(special.values())
    assert tokenizer.decode(encoded.tokens.tolist()) == f"{text}<|endoftext|>"
    assert special["<|endoftext|>"] in tokenizer.encode("<|endoftext|>").ids


def test_text_that_is_an_added_but_no_special_token(tokenizer_json: str) -> None:
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    identity = tokenizer.token_to_id("<think>")
    for encoder in (TokenizersEncoder, GigatokenEncoder):
        assert identity in encoder(tokenizer.to_str()).encode_batch(["a <think> b"]).tokens


def test_truncation_padding_and_begin_of_text_are_left_aside(tokenizer_json: str) -> None:
    changed = Tokenizer.from_str(tokenizer_json)
    changed.enable_truncation(max_length=3)
    changed.enable_padding(length=50)
    changed.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    texts = ["a rather long text", "", "another"]
    plain = TokenizersEncoder(tokenizer_json).encode_batch(texts)
    assert plain.lengths[0] > 3
    assert_equal(plain, TokenizersEncoder(changed.to_str()).encode_batch(texts))
    assert_equal(plain, GigatokenEncoder(changed.to_str()).encode_batch(texts))


def test_gigatoken_is_chosen_where_it_agrees(tokenizer_json: str) -> None:
    encoder, why = choose_encoder(tokenizer_json, ["some", "documents"])
    assert encoder.name == "gigatoken"
    assert why.startswith("equal to tokenizers on")


def test_tokenizers_can_be_asked_for(tokenizer_json: str) -> None:
    encoder, why = choose_encoder(tokenizer_json, ["some"], "tokenizers")
    assert (encoder.name, why) == ("tokenizers", "asked for")


def word_piece() -> str:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordPieceTrainer(
        vocab_size=60, special_tokens=["[UNK]"], show_progress=False
    )
    tokenizer.train_from_iterator(["some words to learn from"] * 5, trainer)
    return str(tokenizer.to_str())


def lower_case(tokenizer_json: str) -> str:
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.normalizer = normalizers.Lowercase()
    return str(tokenizer.to_str())


@pytest.mark.parametrize("kind", ["word piece", "lower case"])
def test_a_tokenizer_it_lacks_falls_back_with_one_line_that_says_why(
    kind: str, tokenizer_json: str, caplog: pytest.LogCaptureFixture
) -> None:
    unsupported = word_piece() if kind == "word piece" else lower_case(tokenizer_json)
    with caplog.at_level(logging.WARNING):
        encoder, why = choose_encoder(unsupported, ["Some words"])
    assert encoder.name == "tokenizers"
    assert "doesn't take this tokenizer (Unsupported" in why
    assert len(caplog.messages) == 1
    assert why.removeprefix("gigatoken can't be used: ") in caplog.messages[0]
    assert "\n" not in caplog.messages[0]
    with pytest.raises(ToolkitError, match=r"backend gigatoken can't be used: .*Unsupported"):
        choose_encoder(unsupported, ["Some words"], "gigatoken")


def test_one_wrong_token_in_one_document_is_enough_to_fall_back(
    tokenizer_json: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = GigatokenEncoder.encode_batch

    def wrong(self: GigatokenEncoder, texts: list[str]) -> Encoded:
        encoded = right(self, texts)
        for index, text in enumerate(texts):
            if "odd" in text:
                encoded.tokens[encoded.lengths[:index].sum()] ^= 1
        return encoded

    monkeypatch.setattr(GigatokenEncoder, "encode_batch", wrong)
    encoder, why = choose_encoder(tokenizer_json, ["even"] * 200 + ["an odd one", "even"])
    assert encoder.name == "tokenizers"
    assert "its tokens differ on 'an odd one'" in why
    assert choose_encoder(tokenizer_json, ["even"] * 200)[0].name == "gigatoken"


def test_without_gigatoken_installed(tokenizer_json: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gigatoken", None)
    encoder, why = choose_encoder(tokenizer_json, ["some"])
    assert encoder.name == "tokenizers"
    assert "not installed" in why


def test_the_file_itself_is_left_as_it_is(vocabulary: Artifact) -> None:
    path = vocabulary.path("tokenizer.json")
    before = path.read_bytes()
    choose_encoder(path.read_text(), ["some"])
    assert path.read_bytes() == before
    assert json.loads(before)["added_tokens"]
