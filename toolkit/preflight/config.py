"""What a cluster's profile says of the preflight: light, for whoever only renders scripts."""

from __future__ import annotations

from pydantic import Field

from toolkit.quantities import Memory
from toolkit.stage import Settings


class Preflight(Settings):
    """What nodes are asked before they work. What has no floor (null) is only reported."""

    enabled: bool | None = Field(
        default=None,
        description="Whether jobs whose ranks meet look at their nodes first; by default those"
        " with several ranks on GPUs.",
    )
    timeout_seconds: int = Field(
        default=300,
        ge=10,
        description="All ranks have come and looked at their nodes within this time: the start of"
        " their containers and of Python; a node that has not is not fit.",
    )
    min_busbw_within: float | None = Field(
        default=None,
        gt=0,
        description="GB/s of an all-reduce within a node, as nccl-tests' busbw: 8 x H100: 350.",
    )
    min_busbw_across: float | None = Field(
        default=None,
        gt=0,
        description="GB/s of an all-reduce across nodes, one rank of each, all at once, as"
        " nccl-tests' busbw: a 400 Gb/s adapter for each GPU: 35.",
    )
    min_shm: Memory | None = Field(
        default="1G",
        description="/dev/shm: NCCL and data loaders pass data through it.",
    )
    min_free_disk: Memory | None = Field(
        default=None, description="Room in the run's folder, as each node sees it."
    )
    min_write_speed: float | None = Field(
        default=None, gt=0, description="MB/s into the run's folder, all nodes at once."
    )
    max_clock_skew: float | None = Field(
        default=5.0, gt=0, description="Seconds that a node's clock may be off."
    )

    def wanted(self, ranks: int, gpus: int) -> bool:
        """Whether a job of so many ranks, and GPUs on each node, is to look first."""
        return ranks > 1 and gpus > 0 if self.enabled is None else self.enabled
