"""How all-reduces are timed, as far as that needs no GPU."""

from datetime import timedelta

import pytest
import torch
from torch import distributed

from toolkit.preflight.reduce import SECONDS, AllReduce


class Group:
    """Counts what is asked of a process group."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.reduced: list[int] = []
        self.waited = 0

    def allreduce(self, tensors: list[torch.Tensor]) -> "Group":
        (data,) = tensors
        self.reduced.append(data.numel())
        if data.numel() == 1:
            data.fill_(2 * self.seconds)  # two ranks' seconds
        return self

    def wait(self) -> None:
        self.waited += 1


def test_on_gpus_only_the_last_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    group = Group()
    AllReduce(distributed.HashStore(), 0, "cuda")._time(group, torch.zeros(4), 50)
    assert (len(group.reduced), group.waited) == (50, 1)
    group = Group()
    AllReduce(distributed.HashStore(), 0, "cpu")._time(group, torch.zeros(4), 3)
    assert (len(group.reduced), group.waited) == (3, 3)


def test_a_slow_network_is_timed_less_often() -> None:
    size = 2 << 20
    fast, slow = Group(seconds=0.001), Group(seconds=30.0)
    for group in (fast, slow):
        assert AllReduce(distributed.HashStore(), 0, "cpu")._measure(group, ranks=2) > 0
    assert fast.reduced == [size, size, 1, size, size]
    assert slow.reduced == [size, size, 1, size]


def test_a_rank_that_never_comes_is_not_waited_for_longer_than_a_round() -> None:
    store = distributed.HashStore()
    AllReduce(store, 0, "cuda")
    assert store.timeout == timedelta(seconds=SECONDS)
