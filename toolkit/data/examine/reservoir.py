"""A uniform sample of a stream of unknown length, skipping over what it doesn't take."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Reservoir(Generic[T]):
    """Keeps ``size`` items of all that are offered, each with the same probability.

    Algorithm L (K.-H. Li, 1994): it draws which item comes next, so that the items in between cost
    nothing but their count.
    """

    def __init__(self, size: int, chance: random.Random) -> None:
        self.items: list[T] = []
        self.seen = 0
        self._size, self._chance = size, chance
        self._next = 0 if size else -1
        self._weight = 1.0

    def offer(self, count: int, take: Callable[[int], T]) -> None:
        """Offer ``count`` items, of which ``take(i)`` gives the i-th."""
        while 0 <= self._next < self.seen + count:
            item = take(self._next - self.seen)
            if len(self.items) < self._size:
                self.items.append(item)
            else:
                self.items[self._chance.randrange(self._size)] = item
            self._skip()
        self.seen += count

    def _skip(self) -> None:
        self._next += 1
        if len(self.items) == self._size:
            self._weight *= math.exp(math.log(self._uniform()) / self._size)
            self._next += math.floor(math.log(self._uniform()) / math.log1p(-self._weight))

    def _uniform(self) -> float:
        """In (0, 1), the ends left out."""
        return self._chance.random() or 5e-324
