"""Words and shingles: the vectorised way against a plain one."""

import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.data.dedup import words as words_module
from toolkit.data.dedup.config import NearDedupSettings
from toolkit.data.dedup.shingles import Shingles, shingle
from toolkit.data.dedup.words import LONGEST, UNSPACED, batches, split_words

TEXTS = st.lists(
    st.text(st.sampled_from("abAZσς019 _.-\n\téÉßİσΣ中文かไทยДь\u0301\u200d😀\ud800")), max_size=8
)


def plain_words(text: str) -> list[str]:
    """The words of a text, one character after another."""
    found = [""]
    for character in unicodedata.normalize("NFC", text).lower().replace("ς", "σ"):
        if any(first <= ord(character) <= last for first, last in UNSPACED):
            found += [character, ""] if unicodedata.category(character)[0] in "LNM" else [""]
        elif unicodedata.category(character)[0] in "LNM":
            found[-1] += character
        else:
            found.append("")
    return [word for word in found if word]


def words_of(texts: Sequence[str]) -> list[list[str]]:
    words = split_words(texts)
    return [
        [words.text(i, i + 1) for i in range(words.offsets[d], words.offsets[d + 1])]
        for d in range(len(texts))
    ]


@settings(deadline=None, max_examples=300, derandomize=True)
@given(TEXTS)
def test_words_are_those_of_the_plain_way(texts: list[str]) -> None:
    assert words_of(texts) == [plain_words(text) for text in texts]


@settings(deadline=None, max_examples=300, derandomize=True)
@given(TEXTS, st.text("ab .", max_size=3))
def test_text_with_little_but_ascii_has_the_same_words(texts: list[str], plain: str) -> None:
    parted = [plain + " ".join(text) for text in texts]
    padded = [text + " x" * 40 * len(text) for text in parted]
    cut = [
        found[: len(plain_words(text))]
        for found, text in zip(words_of(padded), parted, strict=True)
    ]
    assert cut == [plain_words(text) for text in parted]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("don't", ["don", "t"]),
        ("foo_bar(1.5)", ["foo", "bar", "1", "5"]),
        ("Ångström ÅNGSTRÖM A\u030angstro\u0308m", ["ångström"] * 3),
        ("GPT模型v2", ["gpt", "模", "型", "v2"]),
        ("naïve—“café”", ["naïve", "café"]),
        ("", []),
        (" \n\t…😀", []),
        ("хорошо हिन्दी 한국어", ["хорошо", "हिन्दी", "한국어"]),
    ],
)
def test_what_a_word_is(text: str, expected: list[str]) -> None:
    assert words_of([text]) == [expected]


def test_long_runs_are_several_words() -> None:
    (words,) = words_of(["x" * (2 * LONGEST + 3) + " y"])
    assert [len(word) for word in words] == [LONGEST, LONGEST, 3, 1]


@settings(deadline=None, max_examples=200, derandomize=True)
@given(TEXTS, st.integers(1, 4))
def test_hashes_are_equal_where_words_are_in_whatever_batch(texts: list[str], size: int) -> None:
    seen: dict[str, int] = {}
    for start in range(0, len(texts), size):
        words = split_words(texts[start : start + size])
        for index, value in enumerate(words.hashes().tolist()):
            assert seen.setdefault(words.text(index, index + 1), value) == value
    assert len(set(seen.values())) == len(seen)


def test_hashes_of_many_words_differ() -> None:
    texts = [f"{'word' * (n % 14)}{n}" for n in range(200_000)]
    assert len(np.unique(split_words(texts).hashes())) == len(texts)


@settings(deadline=None, max_examples=200, derandomize=True)
@given(TEXTS, st.integers(1, 6), st.sampled_from(["words", "characters"]))
def test_shingles_are_the_n_grams(texts: list[str], n: int, unit: Any) -> None:
    found = shingle(texts, NearDedupSettings(ngram=n, unit=unit))
    seen: dict[tuple[str, ...], int] = {}
    for number, text in enumerate(texts):
        units: Sequence[str] = plain_words(text)
        if unit == "characters":
            units = " ".join(units)
        grams = [tuple(units[i : i + n]) for i in range(len(units) - n + 1)]
        grams = grams or ([tuple(units)] if units else [])
        hashes = found.hashes[found.offsets[number] : found.offsets[number + 1]].tolist()
        assert len(hashes) == len(grams)
        assert all(seen.setdefault(g, h) == h for g, h in zip(grams, hashes, strict=True))
    assert len(set(seen.values())) == len(seen)


def test_sets_have_each_shingle_once() -> None:
    (found,) = Shingles(np.array([5, 3, 5, 3], np.uint64), np.array([0, 4])).sets()
    assert found.tolist() == [3, 5]


@settings(deadline=None, max_examples=100, derandomize=True)
@given(st.lists(st.text("ab", max_size=9)), st.integers(1, 20))
def test_batches_are_all_texts_in_their_order(texts: list[str], size: int) -> None:
    found = list(batches(texts, size))
    assert [text for batch in found for text in batch] == texts
    assert all(len("".join(batch[:-1])) < size for batch in found)
    assert all(len(batch) for batch in found)


def test_class_table_covers_what_it_should() -> None:
    table = words_module._classes()
    assert len(table) == words_module.CLASSIFIED + 1
    later = [c for c in range(words_module.CLASSIFIED, 0x110000, 7) if chr(c).isalnum()]
    assert not later
