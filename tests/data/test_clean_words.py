"""Words as spaCy splits them, and n-grams of them against plain definitions."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.data.clean import words as words_module
from toolkit.data.clean.batch import Batch
from toolkit.data.clean.c4 import sentences
from toolkit.data.clean.ngrams import Grams
from toolkit.data.clean.splitting import split_chunk
from toolkit.data.clean.words import ALPHA, SYMBOL, Splitter

SPLITS = {
    "word": ["word"],
    "don't": ["do", "n't"],
    "dont": ["do", "nt"],
    "can’t": ["ca", "n’t"],
    "cannot": ["can", "not"],
    "she'll've": ["she", "'ll", "'ve"],
    "its": ["its"],
    "John's": ["John", "'s"],
    "(well-known)": ["(", "well", "-", "known", ")"],
    '"Yes,"': ['"', "Yes", ",", '"'],
    "e.g.,": ["e.g.", ","],
    "Mr.": ["Mr."],
    "U.S.": ["U.S."],
    "end.": ["end", "."],
    "end...": ["end", "..."],
    "Corp.'s": ["Corp.", "'s"],
    "http://example.com/a-b?c=d": ["http://example.com/a-b?c=d"],
    "setup.py": ["setup.py"],
    "ab.B": ["ab", ".", "B"],
    "this.That": ["this", ".", "That"],
    "5km": ["5", "km"],
    "$5.50": ["$", "5.50"],
    "10am": ["10", "am"],
    "3-4": ["3", "-", "4"],
    "a--b": ["a", "--", "b"],
    "and/or": ["and/or"],
    "he/she": ["he", "/", "she"],
    ":-)": [":-)"],
    "(so:)": ["(", "so", ":)"],
    "id.": ["i", "d."],
    "x=1": ["x=1"],
    "snake_case": ["snake_case"],
    "__init__": ["_", "_", "init", "_", "_"],
    "日本語。": ["日本語", "。"],
    "☃snow": ["☃", "snow"],
    "…": ["…"],
}


@pytest.mark.parametrize("chunk", SPLITS)
def test_a_chunk_is_split_as_english_is(chunk: str) -> None:
    assert list(split_chunk(chunk)) == SPLITS[chunk]


@settings(deadline=None, max_examples=400, derandomize=True)
@given(st.text(st.sampled_from("aAzZ09.,:;'\"’-–—_()[]/$%+=<>!?…é日☃🙂�") | st.characters()))
def test_splitting_loses_no_character(text: str) -> None:
    for chunk in text.split():
        parts = split_chunk(chunk)
        assert "".join(parts) == chunk
        assert all(parts)


def test_words_are_those_of_spacy_on_real_text(shared_text: list[str]) -> None:
    spacy = pytest.importorskip("spacy", reason="spaCy is the oracle")
    tokenizer = spacy.blank("en").tokenizer
    chunks = Counter(chunk for text in shared_text for chunk in text.split())
    wrong = sum(
        count
        for chunk, count in chunks.items()
        if list(split_chunk(chunk)) != [token.text for token in tokenizer(chunk)]
    )
    assert len(chunks) > 2000
    assert wrong <= chunks.total() / 10_000


@pytest.fixture(scope="module")
def shared_text() -> list[str]:
    """Documents that every machine has: the docstrings of Python's own library."""
    from toolkit.data.samples import read_sample

    texts = [str(value["text"]) for value in read_sample("sample:python-docs")]
    return texts[:: max(1, len(texts) // 150)]


def test_words_of_many_documents_are_those_of_each(shared_text: list[str]) -> None:
    texts = [*shared_text[:40], "", "   ", "one"]
    splitter = Splitter()
    both = [splitter.split(texts[:20]), splitter.split(texts[20:])]
    names = {number: word for words in both for word, number in words.numbers.items()}
    found = [
        [names[i] for i in words.ids[start:stop].tolist()]
        for words in both
        for start, stop in zip(words.offsets[:-1], words.offsets[1:], strict=True)
    ]
    assert found == [[w for chunk in text.split() for w in split_chunk(chunk)] for text in texts]


def test_forgetting_changes_nothing(
    shared_text: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Splitter()
    expected = [whole.split([text]).counts[0] for text in shared_text[:50]]
    monkeypatch.setattr(words_module, "MOST_CHUNKS", 100)
    small = Splitter()
    assert [small.split([text]).counts[0] for text in shared_text[:50]] == expected
    assert len(small._chunks) < len(whole._chunks)


def test_what_is_known_of_words() -> None:
    words = Batch.of(["a1 -- 12 ！"]).words
    kinds = {w: int(words.kinds[n]) for w, n in words.numbers.items()}
    assert kinds["a1"] & ALPHA
    assert not kinds["12"] & (ALPHA | SYMBOL)
    assert kinds["！"] & SYMBOL
    assert words.lengths[words.numbers["a1"]] == 2


@pytest.mark.parametrize(
    ("line", "count"),
    [("One.", 1), ("One. Two.", 2), ("No end", 1), ('"Stop!" he said.', 2), ("Mr. Smith. Yes", 2)],
)
def test_sentences_are_counted(line: str, count: int) -> None:
    assert sentences([line, "One. Two. Three."], Splitter()).tolist() == [count, 3]


TEXTS = st.lists(st.sampled_from(["a", "b", "cc", "ddd"]), max_size=60).map(" ".join)


def gram_lists(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


@settings(deadline=None, max_examples=150, derandomize=True)
@given(st.lists(TEXTS, min_size=1, max_size=4), st.integers(1, 6))
def test_n_grams_are_counted_as_gopher_counts_them(texts: list[str], n: int) -> None:
    grams = Grams.of(Splitter().split(texts))
    tops, bounds = grams.top_bound(n), grams.repeated_bound(n)
    for index, text in enumerate(texts):
        listed = gram_lists(text, n)
        if listed:
            gram, count = Counter(listed).most_common(1)[0]
            assert grams.top(index, n) == len(" ".join(gram)) * count
            assert tops[index] >= grams.top(index, n)
            expected = repeated(text.split(), n)
            assert grams.repeated(index, n, np.inf) == expected
            assert bounds[index] >= expected
        else:
            assert tops[index] == bounds[index] == 0


def repeated(words: list[str], n: int) -> int:
    """Gopher's definition, a step at a time."""
    seen, total, place = set[tuple[str, ...]](), 0, 0
    while place < len(words) - n + 1:
        gram = tuple(words[place : place + n])
        if gram in seen:
            total += sum(map(len, gram))
            place += n
        else:
            seen.add(gram)
            place += 1
    return total
