"""Signatures estimate what they should, and bands are chosen as datasketch chooses them."""

import itertools

import numpy as np
import pytest

from toolkit.data.dedup import minhash
from toolkit.data.dedup.config import NearDedupSettings
from toolkit.data.dedup.lsh import choose_bands, probability
from toolkit.data.dedup.minhash import band_keys, estimate, signatures
from toolkit.data.dedup.shingles import Shingles, shingle
from toolkit.data.dedup.words import Hashes

PAIRS = 300


def pairs_of_sets(size: int, shared: int, pairs: int = PAIRS) -> Shingles:
    """Random sets of ``size``, each two of which share ``shared`` elements."""
    random = np.random.default_rng(size * 1009 + shared)
    found: list[Hashes] = []
    for _ in range(pairs):
        common = random.integers(0, 2**64, shared, np.uint64)
        for _ in range(2):
            own = random.integers(0, 2**64, size - shared, np.uint64)
            found.append(np.concatenate((common, own)))
    return Shingles(np.concatenate(found), np.arange(2 * pairs + 1) * size)


@pytest.mark.parametrize(
    ("size", "shared"), [(2, 1), (5, 4), (20, 15), (100, 50), (300, 280), (2000, 1600)]
)
@pytest.mark.parametrize("num_perm", [64, 256])
def test_estimates_are_unbiased_and_within_the_binomial_error(
    size: int, shared: int, num_perm: int
) -> None:
    true = shared / (2 * size - shared)
    rows = signatures(pairs_of_sets(size, shared), num_perm)
    found = estimate(rows[0::2], rows[1::2])
    error = np.sqrt(true * (1 - true) / num_perm)
    assert abs(found.mean() - true) < 3 * error / np.sqrt(PAIRS)
    assert found.std() < error * (1 + 3 / np.sqrt(2 * PAIRS))
    assert (np.abs(found - true) > 4 * error).mean() < 0.01


def test_each_value_agrees_with_the_probability_that_it_should() -> None:
    true = 60 / (2 * 80 - 60)
    rows = signatures(pairs_of_sets(80, 60, 3000), 64)
    agreeing = (rows[0::2] == rows[1::2]).mean(axis=0)
    assert np.abs(agreeing - true).max() < 4.5 * np.sqrt(true * (1 - true) / 3000)


def test_bands_meet_as_the_curve_says() -> None:
    true, bands, width = 160 / (2 * 200 - 160), 16, 4
    rows = signatures(pairs_of_sets(200, 160, 2000), 64)
    keys = band_keys(rows, bands, width)
    met = (keys[0::2] == keys[1::2]).any(axis=1).mean()
    expected = probability(true, bands, width)
    assert abs(met - expected) < 4 * np.sqrt(expected * (1 - expected) / 2000) + 0.01


def test_signatures_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [" ".join(f"w{(d * 31 + i * i) % 97}" for i in range(d % 40)) for d in range(60)]
    settings = NearDedupSettings(num_perm=64)
    whole = signatures(shingle(texts, settings), 64)
    alone = np.concatenate([signatures(shingle([text], settings), 64) for text in texts])
    monkeypatch.setattr(minhash, "DOCUMENTS", 7)
    assert (whole == alone).all()
    assert (whole == signatures(shingle(texts, settings), 64)).all()


def test_order_and_repetition_of_shingles_change_nothing() -> None:
    hashes = np.random.default_rng(0).integers(0, 2**64, 30, np.uint64)
    once = signatures(Shingles(hashes, np.array([0, 30])), 128)
    again = np.concatenate((hashes[::-1], hashes[:7]))
    assert (once == signatures(Shingles(again, np.array([0, 37])), 128)).all()


def test_documents_without_a_word_have_the_empty_signature() -> None:
    rows = signatures(shingle(["", "a b", "..."], NearDedupSettings(num_perm=16)), 16)
    assert (rows[[0, 2]] == 0xFFFF).all()
    assert len(np.unique(rows[1])) > 8


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.85, 0.9, 0.95])
def test_the_banding_is_datasketchs(threshold: float) -> None:
    lsh = pytest.importorskip("datasketch.lsh", reason="datasketch is the oracle")
    for num_perm, weight in itertools.product((64, 128), (0.5, 0.8, 0.98)):
        expected = lsh._optimal_param(threshold, num_perm, 1 - weight, weight)
        assert choose_bands(threshold, num_perm, weight) == expected


@pytest.mark.parametrize("threshold", [0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95])
@pytest.mark.parametrize("num_perm", [128, 256])
def test_by_default_95_of_100_pairs_at_the_threshold_are_candidates(
    threshold: float, num_perm: int
) -> None:
    settings = NearDedupSettings(threshold=threshold, num_perm=num_perm)
    assert probability(threshold, *settings.banding()) >= 0.95


def test_banding_as_set() -> None:
    assert NearDedupSettings(bands=14, rows=8).banding() == (14, 8)
    with pytest.raises(ValueError, match="bands and rows go together"):
        NearDedupSettings(bands=14)
    with pytest.raises(ValueError, match="bands x rows = 264 needs as many"):
        NearDedupSettings(bands=33, rows=8)
