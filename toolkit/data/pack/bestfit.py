"""Best-fit decreasing: which examples share a packed row, for millions of them.

The algorithm is that of Ding et al. 2024, "Fewer Truncations Improve Language Modeling"
(arXiv:2404.10830): longest first, each example goes into the fullest row that has room for it, and
a segment tree over the room that rows have left finds it in O(log L). Here the examples of one
length are placed together (the tightest row stays the tightest until it is full), so that the tree
is asked once for a group of rows and not for every example: O(n) in numpy, and at worst
O(n log L) steps in Python.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Packing:
    """Which examples each packed row has."""

    order: Integers
    """All examples, by number, one row's after another's."""
    starts: Integers
    """Shape (rows + 1,): row r has ``order[starts[r]:starts[r + 1]]``."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    def row(self, number: int) -> Integers:
        """The examples of a row, longest first."""
        return self.order[self.starts[number] : self.starts[number + 1]]


def pack(lengths: Integers, capacity: int, seed: int) -> Packing:
    """Put examples into as few rows of ``capacity`` tokens as best-fit decreasing finds.

    Which of the examples of one length go where, and the order of the rows, are drawn by ``seed``:
    rows don't come sorted by length.

    Args:
        lengths: tokens of each example, 1 to ``capacity``.
    """
    count = len(lengths)
    if not count:
        return Packing(np.zeros(0, np.int64), np.zeros(1, np.int64))
    assert lengths.min() >= 1 and lengths.max() <= capacity, "an example doesn't fit into a row"
    random = np.random.default_rng(seed)
    drawn = random.permutation(count)
    longest_first = drawn[np.argsort(capacity - lengths[drawn], kind="stable")]
    placed = _Rows(capacity)
    histogram = np.bincount(lengths)
    for length in np.flatnonzero(histogram)[::-1].tolist():
        placed.add(length, int(histogram[length]))
    row = random.permutation(placed.count)[placed.rows()]
    starts = np.zeros(placed.count + 1, np.int64)
    np.cumsum(np.bincount(row, minlength=placed.count), out=starts[1:])
    return Packing(longest_first[np.argsort(row, kind="stable")], starts)


class _Rows:
    """The rows opened so far, in groups of neighbours with the same room left."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.count = capacity, 0
        self._levels = Levels(capacity)
        self._groups: dict[int, list[tuple[int, int]]] = {}
        """By room: (first row, number of rows)."""
        self._steps: list[tuple[int, int, int]] = []
        """(first row, number of rows, examples put into each), in the order of placing."""

    def add(self, length: int, number: int) -> None:
        """Place ``number`` examples of ``length``, no longer than any before."""
        while number:
            room = self._levels.smallest(length)
            first, rows = self._take(room) if room else self._open(length, number)
            number -= self._fill(first, rows, room or self.capacity, length, number)

    def _open(self, length: int, number: int) -> tuple[int, int]:
        """As many new rows as these examples need."""
        first, rows = self.count, -(-number // (self.capacity // length))
        self.count += rows
        return first, rows

    def _take(self, room: int) -> tuple[int, int]:
        group = self._groups[room].pop()
        if not self._groups[room]:
            self._levels.discard(room)
        return group

    def _fill(self, first: int, rows: int, room: int, length: int, number: int) -> int:
        """Fill a group's rows one by one; returns how many examples went in."""
        fit = room // length
        full = min(rows, number // fit)
        self._put(first, full, fit, room - fit * length)
        rest = min(number - full * fit, fit) if full < rows else 0
        partly = int(rest > 0)
        self._put(first + full, partly, rest, room - rest * length)
        self._keep(first + full + partly, rows - full - partly, room)
        return full * fit + rest

    def _put(self, first: int, rows: int, each: int, room: int) -> None:
        if rows:
            self._steps.append((first, rows, each))
            self._keep(first, rows, room)

    def _keep(self, first: int, rows: int, room: int) -> None:
        if rows and room:
            self._groups.setdefault(room, []).append((first, rows))
            self._levels.add(room)

    def rows(self) -> Integers:
        """The row of every example, in the order of placing."""
        first, rows, each = np.array(self._steps, np.int64).T
        sizes = rows * each
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        placed: Integers = np.repeat(first, sizes) + within // np.repeat(each, sizes)
        return placed


class Levels:
    """A set of the numbers 0 to ``highest``, as a segment tree of flags."""

    def __init__(self, highest: int) -> None:
        self._leaves = 1 << highest.bit_length()
        self._tree = bytearray(2 * self._leaves)

    def add(self, number: int) -> None:
        """Put a number in."""
        node = self._leaves + number
        while node and not self._tree[node]:
            self._tree[node] = 1
            node >>= 1

    def discard(self, number: int) -> None:
        """Take a number out."""
        node = self._leaves + number
        self._tree[node] = 0
        while (node := node >> 1) and not (self._tree[2 * node] or self._tree[2 * node + 1]):
            self._tree[node] = 0

    def smallest(self, least: int) -> int | None:
        """The smallest number of the set that is not below ``least``; None where there is none."""
        node, tree = self._leaves + least, self._tree
        while not tree[node]:
            while node & 1:  # a right child: what is further right lies beyond its parent
                node >>= 1
            if not node:
                return None
            node += 1
        while node < self._leaves:
            node = 2 * node if tree[2 * node] else 2 * node + 1
        return node - self._leaves
