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
WARM_UP = {"cuda": 5, "cpu": 1}
TIMES = {"cuda": 20, "cpu": 3}


class AllReduce:
    """One rank's part in all-reduces of groups that it is told."""

    def __init__(self, store: Store, rank: int, device: str) -> None:
        # A collective that hangs is then an error of this rank, and not the end of its process:
        # other groups can still be measured.
        os.environ["TORCH_NCCL_BLOCKING_WAIT"] = "1"
        os.environ["TORCH_NCCL_DUMP_ON_TIMEOUT"] = "0"
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
        for _ in range(WARM_UP[self._device]):
            group.allreduce([data]).wait()
        self._finish()
        started = time.perf_counter()
        for _ in range(TIMES[self._device]):
            group.allreduce([data]).wait()
        self._finish()
        seconds = (time.perf_counter() - started) / TIMES[self._device]
        return size / 1e9 / seconds * 2 * (ranks - 1) / ranks

    def _finish(self) -> None:
        if self._device == "cuda":
            torch.cuda.synchronize()
