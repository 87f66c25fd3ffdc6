"""Fill-in-the-middle: every token is there, in one of two orders, whoever does the work."""

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from toolkit.data.encoders import Encoded, Encoder, open_encoder
from toolkit.data.fim import Fim, cut, draws
from toolkit.data.fim_config import FIM_TOKENS, FimSettings
from toolkit.data.tokenizer_folder import TokenizerFolder, open_tokenizer
from toolkit.errors import ToolkitError

PREFIX, MIDDLE, SUFFIX = range(256, 259)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> TokenizerFolder:
    """A tokenizer whose ids are bytes, and three special tokens above them."""
    path = tmp_path_factory.mktemp("bytes") / "tokenizer.json"
    alphabet = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(alphabet, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in FIM_TOKENS[0]])
    tokenizer.save(str(path))
    return open_tokenizer(path.parent)


@pytest.fixture(scope="module")
def encoder(folder: TokenizerFolder) -> Encoder:
    return open_encoder(folder, "gigatoken")


@pytest.fixture(scope="module")
def decoder(folder: TokenizerFolder) -> dict[int, bytes]:
    """The byte of each token: GPT-2 shows bytes that are no visible Latin-1 from U+0100 on."""
    hidden = [*range(33), *range(127, 161), 173]
    return {
        folder.vocabulary[chr(0x100 + hidden.index(b)) if b in hidden else chr(b)]: bytes([b])
        for b in range(256)
    }


def documents(encoded: Encoded) -> list[list[int]]:
    ends = np.cumsum(encoded.lengths)
    return [part.tolist() for part in np.split(encoded.tokens, ends[:-1])] if len(ends) else []


def restore(tokens: list[int], decoder: dict[int, bytes]) -> tuple[str, str]:
    """The order of a document's parts, and its text."""

    def text(ids: list[int]) -> bytes:
        return b"".join(decoder[i] for i in ids)

    if tokens[:1] != [PREFIX]:
        return "whole", text(tokens).decode()
    middle = tokens.index(MIDDLE)
    if tokens[1:2] == [SUFFIX]:
        return "spm", (text(tokens[middle + 1 :]) + text(tokens[2:middle])).decode()
    suffix = tokens.index(SUFFIX)
    parts = tokens[1:suffix], tokens[middle + 1 :], tokens[suffix + 1 : middle]
    return "psm", b"".join(map(text, parts)).decode()


def fim(rate: float = 0.5, spm: float = 0.5, seed: int = 1) -> Fim:
    return Fim(PREFIX, MIDDLE, SUFFIX, rate, spm, seed)


@settings(deadline=None, max_examples=100, derandomize=True)
@given(texts=st.lists(st.text(min_size=1), max_size=8), seed=st.integers(0, 9))
def test_nothing_is_lost(
    texts: list[str], seed: int, encoder: Encoder, decoder: dict[int, bytes]
) -> None:
    found = documents(fim(0.8, 0.5, seed).apply(texts, encoder))
    assert [restore(tokens, decoder)[1] for tokens in found] == texts


def test_the_rates(encoder: Encoder, decoder: dict[int, bytes]) -> None:
    texts = [f"document {i} of many, with some words" for i in range(4000)]
    orders = Counter(
        restore(t, decoder)[0] for t in documents(fim(0.4, 0.25).apply(texts, encoder))
    )
    assert 0.37 < (orders["psm"] + orders["spm"]) / 4000 < 0.43
    assert 0.21 < orders["spm"] / (orders["psm"] + orders["spm"]) < 0.29


@pytest.mark.parametrize(("rate", "spm", "order"), [(0, 1, "whole"), (1, 0, "psm"), (1, 1, "spm")])
def test_always_and_never(
    rate: float, spm: float, order: str, encoder: Encoder, decoder: dict[int, bytes]
) -> None:
    texts = [f"some text and {i}" for i in range(100)]
    found = documents(fim(rate, spm).apply(texts, encoder))
    # With nothing in front of the first cut both orders are the same tokens.
    orders = Counter(restore(tokens, decoder)[0] for tokens in found)
    assert orders[order] > 80
    assert orders["whole"] in (0, 100)
    plain = documents(encoder.encode_batch(texts))
    assert [sorted(t for t in tokens if t < 256) for tokens in found] == list(map(sorted, plain))


def test_batches_and_order_change_nothing(encoder: Encoder) -> None:
    texts = [f"{i} text " * (i % 7 + 1) for i in range(200)]
    whole = documents(fim().apply(texts, encoder))
    one_by_one = [documents(fim().apply([text], encoder))[0] for text in texts]
    assert whole == one_by_one
    assert documents(fim().apply(texts[::-1], encoder)) == whole[::-1]
    assert whole != documents(fim(seed=2).apply(texts, encoder))
    assert documents(pickle.loads(pickle.dumps(fim())).apply(texts, encoder)) == whole


def test_keys_take_the_place_of_the_text(encoder: Encoder) -> None:
    keys = [str(i).encode() for i in range(50)]
    found = documents(fim().apply(["the same text"] * 50, encoder, keys))
    assert len({tuple(tokens) for tokens in found}) > 10
    assert len({tuple(t) for t in documents(fim().apply(["the same text"] * 50, encoder))}) == 1


def test_special_tokens_in_a_text_stay_text(encoder: Encoder, decoder: dict[int, bytes]) -> None:
    text = "".join(FIM_TOKENS[0])
    for seed in range(20):
        tokens = documents(fim(1, 0.5, seed).apply([text], encoder))[0]
        assert sum(token >= 256 for token in tokens) == 3
        assert restore(tokens, decoder)[1] == text


@pytest.mark.parametrize("backend", ["sentencepiece", "gigatoken"])
def test_no_blank_comes_in_at_a_cut(backend: str, tokenizer_folders: dict[str, Path]) -> None:
    folder = open_tokenizer(tokenizer_folders["sentencepiece-bpe"])
    processor = SentencePieceProcessor(str(folder.files[0]))
    names = FimSettings(prefix_token="<ctl>", middle_token="<s>", suffix_token="</s>", fim_rate=1)
    permute = Fim.of(names, folder, 1)
    texts = [f"some{i} words\n  in  lines, na\u00efve \u4e2d\u6587" for i in range(40)]
    found = documents(permute.apply(texts, open_encoder(folder, backend)))
    for text, tokens in zip(texts, found, strict=True):
        middle, suffix = tokens.index(permute.middle), tokens.index(permute.suffix)
        if suffix == 1:
            ordered = tokens[middle + 1 :] + tokens[2:middle]
        else:
            ordered = tokens[1:suffix] + tokens[middle + 1 :] + tokens[suffix + 1 : middle]
        assert processor.decode(ordered) == text


def test_no_texts(encoder: Encoder) -> None:
    assert len(fim().apply([], encoder).lengths) == 0


def test_cuts_fall_everywhere_and_alike() -> None:
    cuts = Counter(
        len(part) for i in range(6000) for part in cut("abc", *draws(str(i).encode(), 2, 0))[:1]
    )
    # The first of two places among 0..3: 7, 5, 3 and 1 of 16.
    assert [round(16 * cuts[k] / 6000) for k in range(4)] == [7, 5, 3, 1]


def test_draws_stay_as_they_are() -> None:
    # A change of these would change every dataset that is made anew.
    assert draws(b"text", 2, 7) == [0.8093977610341869, 0.9342490013730357]


def test_tokens_of_the_tokenizer(folder: TokenizerFolder) -> None:
    assert Fim.of(FimSettings(), folder, 3) == fim(seed=3)
    prefix, middle, suffix = FIM_TOKENS[0]
    named = FimSettings(prefix_token=suffix, middle_token=middle, suffix_token=prefix)
    assert (Fim.of(named, folder, 3).prefix, Fim.of(named, folder, 3).suffix) == (SUFFIX, PREFIX)


def test_a_tokenizer_without_the_tokens(tmp_path: Path, folder: TokenizerFolder) -> None:
    plain = Tokenizer(models.WordLevel({"one": 0, "<unk>": 1}, "<unk>"))
    plain.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ToolkitError, match=r"none of the known tokens(.|\n)*additional_special"):
        Fim.of(FimSettings(), open_tokenizer(tmp_path), 1)
    named = FimSettings(prefix_token="<p>", middle_token="<m>", suffix_token="<s>")
    with pytest.raises(ToolkitError, match="prefix_token: the tokenizer has no token '<p>'"):
        Fim.of(named, folder, 1)


@pytest.mark.parametrize(
    "bad",
    [
        {"fim_rate": 1.5},
        {"fim_spm_rate": -0.1},
        {"prefix_token": "<p>"},
        {"prefix_token": "<p>", "middle_token": "<p>", "suffix_token": "<s>"},
    ],
)
def test_settings_that_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        FimSettings(**bad)
