"""Texts to words to hashes, millions at a time: no Python per word.

A word is a run of letters, digits and marks (Unicode categories L, N, M), in NFC and lower case.
Scripts that are written without blanks (ideographs, kana, Thai, Lao, Khmer, Burmese, Tibetan)
give a word per character. A run of more than 64 bytes counts as several words of 64 bytes.
Everything else separates words.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
Offsets = npt.NDArray[np.int64]

LONGEST = 64
"""Bytes of a word."""
WINDOW = 8
"""Bytes that are hashed at once."""
BATCH = 1 << 20
"""Characters that are hashed at once: few enough for a cache, enough for the short documents."""
BLANK = 0x20
SEPARATOR, PART, ALONE = 0, 1, 2
"""Classes of characters: none of a word, a part of a word, a word of its own."""

UNSPACED = (
    *((0x0E00, 0x0EFF), (0x0F00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x2E80, 0x2FDF)),
    *((0x3005, 0x3007), (0x3040, 0x312F), (0x31A0, 0x31BF), (0x31F0, 0x31FF), (0x3400, 0x4DBF)),
    *((0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF)),
)
"""Blocks of scripts that put no blanks between words."""
LETTERS = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0x20000, 0x323AF))
"""Blocks of nothing but letters, ideographs and Hangul, which need not be asked for one by one."""
CLASSIFIED = 0x32400
"""Code points from here on (tags, private use) are no part of a word."""

SPARSE = 16
"""If not more than one of so many bytes is not ASCII, runs of them are done one by one."""
SHORT = 64
"""Bytes of a run that is remembered."""

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_MASKS = np.array([(1 << (8 * n)) - 1 for n in range(WINDOW + 1)], np.uint64)
_LOWER = bytes(
    code if code >= 0x80 or chr(code).isdigit() else code | 0x20 if chr(code).isalpha() else BLANK
    for code in range(256)
)
"""Of UTF-8 bytes: ASCII letters in lower case, other ASCII blank, all else as it is."""


def mix(values: Hashes) -> Hashes:
    """splitmix64's finaliser (Stafford's variant 13), in place: every input bit moves all."""
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def _fold(values: Hashes) -> Hashes:
    """A cheaper bijection of 64 bits, in place, for what is mixed later on."""
    values *= _MULTIPLIER
    values ^= values >> np.uint64(32)
    values *= _MULTIPLIER
    return values


@dataclass(frozen=True)
class Words:
    """The words of documents, in one buffer of UTF-8."""

    buffer: bytes
    """Words with one blank or more between them, and ``WINDOW`` blanks behind the last."""
    starts: Offsets
    """Where each word begins in the buffer, in bytes; int64[words]."""
    ends: Offsets
    offsets: Offsets
    """int64[documents + 1]: words of document d are ``offsets[d]`` to ``offsets[d + 1]``."""

    def hashes(self) -> Hashes:
        """A 64-bit hash of each word: equal words have equal hashes, in whatever batch."""
        windows = np.ndarray(
            (len(self.buffer) - WINDOW + 1,), np.dtype("<u8"), self.buffer, 0, (1,)
        )
        lengths = self.ends - self.starts
        hashes = _fold(windows[self.starts] & _MASKS[np.minimum(lengths, WINDOW)])
        longer = np.flatnonzero(lengths > WINDOW)
        for done in range(WINDOW, LONGEST, WINDOW):
            left = lengths[longer] - done
            piece = windows[self.starts[longer] + done] & _MASKS[np.minimum(left, WINDOW)]
            hashes[longer] = _fold(hashes[longer] + piece)
            longer = longer[left > WINDOW]
            if not len(longer):
                break
        return hashes

    def joined(self, start: int, stop: int) -> bytes:
        """Words ``start`` to ``stop`` with one blank between them, as UTF-8."""
        spans = zip(self.starts[start:stop].tolist(), self.ends[start:stop].tolist(), strict=True)
        return b" ".join([self.buffer[a:b] for a, b in spans])

    def text(self, start: int, stop: int) -> str:
        """``joined``, decoded; a long word may have been cut within a character."""
        return self.joined(start, stop).decode("utf-8", "replace")


def split_words(texts: Sequence[str]) -> Words:
    """The words of texts; best in batches of about ``BATCH`` characters: see ``batches``."""
    parts = [t.encode() if t.isascii() else _plain(t) for t in texts]
    buffer = b" ".join([*parts, b" " * WINDOW]).translate(_LOWER)
    begins = np.cumsum([0, *(len(part) + 1 for part in parts)])
    inside = np.frombuffer(b" " + buffer, np.uint8) != BLANK
    edges = np.flatnonzero(inside[1:] != inside[:-1])
    starts, ends = _cut_long(edges[0::2], edges[1::2])
    return Words(buffer, starts, ends, np.searchsorted(starts, begins))


def batches(texts: Sequence[str], characters: int = BATCH) -> Iterator[Sequence[str]]:
    """Slices of texts, each of about so many characters or one longer text."""
    start = size = 0
    for index, text in enumerate(texts):
        size += len(text)
        if size >= characters:
            yield texts[start : index + 1]
            start, size = index + 1, 0
    if start < len(texts):
        yield texts[start:]


def _cut_long(starts: Offsets, ends: Offsets) -> tuple[Offsets, Offsets]:
    """Words of ``LONGEST`` bytes at most."""
    lengths = ends - starts
    if not len(lengths) or lengths.max() <= LONGEST:
        return starts, ends
    pieces = -(-lengths // LONGEST)
    first = np.cumsum(pieces) - pieces
    nth = np.arange(pieces.sum()) - np.repeat(first, pieces)
    cut = np.repeat(starts, pieces) + nth * LONGEST
    return cut, np.minimum(cut + LONGEST, np.repeat(ends, pieces))


def _plain(text: str) -> bytes:
    """UTF-8 in which what is not ASCII is a part of a word, or blank; see ``_spaced``."""
    raw = text.encode("utf-8", "surrogatepass")
    foreign = np.flatnonzero(np.frombuffer(raw, np.uint8) >= 0x80)
    breaks = np.flatnonzero(np.diff(foreign) > 1)
    if len(foreign) > len(raw) // SPARSE:
        return _spaced(text).encode()
    pieces, done = [], 0
    starts = foreign[np.append(0, breaks + 1)].tolist()
    ends = (foreign[np.append(breaks, -1)] + 1).tolist()
    for start, end in zip(starts, ends, strict=True):
        first = max(start - 1, done)  # a mark makes one character with what is in front of it
        run = raw[first:end]
        pieces += [raw[done:first], _spaced_run(run) if len(run) <= SHORT else _spaced_long(run)]
        done = end
    return b"".join([*pieces, raw[done:]])


def _spaced_long(raw: bytes) -> bytes:
    return _spaced(raw.decode("utf-8", "surrogatepass")).encode()


@functools.lru_cache(1 << 14)
def _spaced_run(raw: bytes) -> bytes:
    """As ``_spaced``, faster for a few characters."""
    text = _lower(raw.decode("utf-8", "surrogatepass"))
    return "".join(map(_spaced_character, text)).encode()


@functools.lru_cache(1 << 14)
def _spaced_character(character: str) -> str:
    kind = _classes()[min(ord(character), CLASSIFIED)]
    return f" {character} " if kind == ALONE else character if kind == PART else " "


def _lower(text: str) -> str:
    """Text in NFC and lower case; a final sigma is as any, so that neighbours play no part."""
    return unicodedata.normalize("NFC", text).lower().replace("ς", "σ")


def _spaced(text: str) -> str:
    """Text in lower case, with blanks for what is no word, and about unspaced characters."""
    raw = bytearray(_lower(text).encode("utf-32-le", "surrogatepass"))
    codes = np.frombuffer(raw, np.dtype("<u4"))
    kinds = _classes().take(codes, mode="clip")
    codes[kinds == SEPARATOR] = BLANK
    alone = np.flatnonzero(kinds == ALONE)
    if len(alone):
        codes = np.insert(codes, np.concatenate((alone, alone + 1)), BLANK)
    return codes.tobytes().decode("utf-32-le")


@functools.cache
def _classes() -> npt.NDArray[np.uint8]:
    """The class of every code point up to ``CLASSIFIED``."""
    classes = np.zeros(CLASSIFIED + 1, np.uint8)
    known = np.zeros(CLASSIFIED, np.bool_)
    for first, last in LETTERS:
        known[first : last + 1] = classes[first : last + 1] = PART
    asked = np.flatnonzero(~known)
    categories = "".join([unicodedata.category(chr(code))[0] for code in asked.tolist()])
    classes[asked] = np.isin(np.frombuffer(categories.encode(), np.uint8), list(b"LNM"))
    for first, last in UNSPACED:
        block = classes[first : last + 1]
        block[block == PART] = ALONE
    return classes
