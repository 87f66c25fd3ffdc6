"""MinHash signatures at the cost of one hash per shingle, instead of one per shingle and value.

After Dahlgaard, Knudsen, Thorup: Fast Similarity Sketching (FOCS 2017). In round t every shingle
falls into one of ``num_perm`` bins with the value (t, hash), and a bin keeps its least value. Once
a document has filled all its bins, later rounds can't change them. So each bin is a true MinHash:
two documents agree in it with a probability equal to the Jaccard similarity of their sets, and the
share of bins that agree estimates it without bias and with no more variance than independent
permutations have. Long documents need a round or two. Bins that are empty after ``ROUNDS`` (of
documents of few shingles) take the least hash over all shingles, of a function of the bin's own.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from toolkit.data.dedup.shingles import Shingles
from toolkit.data.dedup.words import Hashes, Offsets, mix

ROUNDS = 16
EMPTY = np.uint64(0xFFFFFFFFFFFFFFFF)
DOCUMENTS = 512
"""Documents of which the bins are filled at once: what fits a processor's cache."""

_STEP = 0x9E3779B97F4A7C15
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)

Signatures = npt.NDArray[np.uint16]


def signatures(shingles: Shingles, num_perm: int) -> Signatures:
    """The signatures of documents, u16[documents, num_perm]; without shingles, all 65535.

    Values are cut to 16 bits: that different ones look equal (1 in 65,536) is far below the
    estimate's own error.
    """
    bounds, documents = shingles.offsets, len(shingles.offsets) - 1
    result = np.full((documents, num_perm), 0xFFFF, np.uint16)
    for start in range(0, documents, DOCUMENTS):
        stop = min(start + DOCUMENTS, documents)
        hashes = shingles.hashes[bounds[start] : bounds[stop]]
        bins = _bins(hashes, np.diff(bounds[start : stop + 1]), num_perm)
        result[start:stop] = (mix(bins) >> np.uint64(48)).astype(np.uint16)
    result[shingles.counts == 0] = 0xFFFF
    return result


def estimate(left: Signatures, right: Signatures) -> npt.NDArray[np.float32]:
    """The Jaccard similarity that signatures, row by row, let expect."""
    agreeing: npt.NDArray[np.float32] = np.mean(left == right, axis=1, dtype=np.float32)
    return agreeing


def band_keys(rows: Signatures, bands: int, width: int) -> Hashes:
    """A 64-bit hash of each band of ``width`` values; u64[documents, bands]."""
    used = rows[:, : bands * width].reshape(len(rows), bands, width)
    keys = np.zeros((len(rows), bands), np.uint64)
    for column in range(width):
        keys = mix((keys + used[:, :, column]) * np.uint64(_STEP))
    return keys


def _bins(hashes: Hashes, counts: Offsets, num_perm: int) -> Hashes:
    """The least value in each bin, as round << 32 | 32 bits; u64[documents, num_perm]."""
    documents = len(counts)
    bins = np.full((documents, num_perm), EMPTY)
    open_ones, left = np.arange(documents), hashes
    for step in range(ROUNDS):
        owners = np.repeat(open_ones * num_perm, counts[open_ones])
        _fill(bins.reshape(-1), left, owners, num_perm, step)
        if step > 3 and step & (step + 1):
            continue  # whose bins are full is looked at after rounds 1 to 4, 8 and 16
        unfilled = (bins[open_ones] == EMPTY).any(axis=1) & (counts[open_ones] > 0)
        if not unfilled.any():
            return bins
        left = left[np.repeat(unfilled, counts[open_ones])]
        open_ones = open_ones[unfilled]
    _fill_rest(bins, hashes, counts)
    return bins


def _fill(bins: Hashes, hashes: Hashes, owners: Offsets, num_perm: int, step: int) -> None:
    """One round: shingles' hashes are mixed as they come, so the first takes them as they are."""
    mixed = mix(hashes + np.uint64(_STEP * step & (2**64 - 1))) if step else hashes
    places = mixed >> _HALF
    places *= np.uint64(num_perm)
    places >>= _HALF
    values = mixed & _LOW
    if step:
        values |= np.uint64(step << 32)
    np.minimum.at(bins, owners + places.view(np.int64), values)


def _fill_rest(bins: Hashes, hashes: Hashes, counts: Offsets) -> None:
    """Fill what is empty still: for each empty bin, hash all the document's shingles again.

    Bins are taken together by their documents' j-th shingles, those of long documents in front:
    a multiplication by the bin's own odd number is hash enough for values that are mixed.
    """
    order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    ranks, places = np.nonzero(bins[order] == EMPTY)
    documents = order[ranks]
    multipliers = _multipliers(bins.shape[1])[places]
    starts = (np.cumsum(counts) - counts)[documents]
    sizes = counts[documents]
    left = np.searchsorted(-sizes, -np.arange(sizes.max(initial=0)), side="left")
    least = np.full(len(documents), EMPTY)
    for step, bound in enumerate(left.tolist()):
        again = hashes[starts[:bound] + step]
        again *= multipliers[:bound]
        np.minimum(least[:bound], again, out=least[:bound])
    bins[documents, places] = (least >> _HALF) | np.uint64(ROUNDS << 32)


@functools.cache
def _multipliers(num_perm: int) -> Hashes:
    """An odd number for each bin."""
    numbers = np.arange(1, num_perm + 1, dtype=np.uint64)
    return mix(numbers * np.uint64(_STEP)) | np.uint64(1)
