"""All-reduces, timed: over NCCL where ranks have GPUs, over gloo where they have none."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import distributed
from torch._C._distributed_c10d import PrefixStore, Store

logger = logging.getLogger("toolkit.preflight")
SECONDS = 45.0
"""For a group to meet and for its all-reduces; more means that one of them hangs."""
BYTES = {"cuda": 256 << 20, "cpu": 8 << 20}
"""Large enough for the bandwidth to count, and not the latency; gloo is a hundred times slower."""
TIMES = {"cuda": 50, "cpu": 2}
"""How many are timed, at most: nodes that share a slow network are to come to an end, too."""
TIMED_SECONDS = 8.0


class AllReduce:
    """One rank's part in all-reduces of groups that it is told."""

    def __init__(self, store: Store, rank: int, device: str) -> None:
        # A collective that hangs is then an error of this rank, and not the end of its process:
        # other groups can still be measured.
        os.environ["TORCH_NCCL_BLOCKING_WAIT"] = "1"
        os.environ["TORCH_NCCL_DUMP_ON_TIMEOUT"] = "0"
        store.set_timeout(timedelta(seconds=SECONDS))  # NCCL's ranks learn of each other there
        self._store, self._rank, self._device = store, rank, device

    def bandwidth(self, name: str, ranks: Sequence[int]) -> float:
        """This rank's ``busbw`` in GB/s (10**9 bytes); 0 where the all-reduce failed."""
        try:
            group = self._group(name, ranks)
            return self._measure(group, len(ranks))
        except RuntimeError as error:  # what torch, gloo and NCCL raise
            logger.warning("all-reduce %s of ranks %s failed: %s", name, list(ranks), error)
            return 0.0

    def _group(self, name: str, ranks: Sequence[int]) -> Any:
        """A group of its own for each measurement: one that broke is of no use any more.

        Built as ``distributed.new_group`` builds it, but without a group of all ranks before it:
        one broken node would keep that from being.
        """
        store = PrefixStore(f"{name}/{ranks[0]}", self._store)
        place, timeout = list(ranks).index(self._rank), timedelta(seconds=SECONDS)
        if self._device == "cpu":
            return distributed.ProcessGroupGloo(store, place, len(ranks), timeout)
        options = distributed.ProcessGroupNCCL.Options()
        options._timeout = timeout
        return distributed.ProcessGroupNCCL(store, place, len(ranks), options)

    def _measure(self, group: Any, ranks: int) -> float:
        size = BYTES[self._device]
        data = torch.zeros(size // 4, dtype=torch.float32, device=self._device)
        self._time(group, data, 1)  # the group meets
        once = torch.tensor([self._time(group, data, 1)], device=self._device)
        self._time(group, once, 1)  # the sum, so that all ranks time as many
        most = TIMED_SECONDS * ranks / max(float(once.item()), 1e-6)
        times = max(1, min(TIMES[self._device], int(most)))
        seconds = self._time(group, data, times) / times
        return size / 1e9 / seconds * 2 * (ranks - 1) / ranks

    def _time(self, group: Any, data: torch.Tensor, times: int) -> float:
        """Seconds of so many all-reduces, one after another.

        NCCL's stand in a queue of the GPU's, and only the last is waited for: ``wait`` looks
        whether one is done, and sleeps for 1 to 10 ms before it looks again, which is longer than
        an all-reduce over NVLink takes (``kSynchronizeBusyWaitMillis`` in torch's
        ``ProcessGroupNCCL.cpp``). gloo would run several at once.
        """
        started = time.perf_counter()
        for number in range(1, times + 1):
            work = group.allreduce([data])
            if self._device == "cpu" or number == times:
                work.wait()
        if self._device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started
