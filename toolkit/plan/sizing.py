"""A run on a machine: its memory, its speed and its cost together."""

from __future__ import annotations

from dataclasses import dataclass

from toolkit.errors import ToolkitError
from toolkit.plan.config import CALIBRATED, Planning
from toolkit.plan.cost import Cost, cost_of
from toolkit.plan.hardware import GIGA, NETWORK, NETWORK_SHARE, Hardware, find_gpu
from toolkit.plan.memory import StageMemory, largest, memory_by_stage, with_padding
from toolkit.plan.parameters import active_parameter_count, parameter_count
from toolkit.plan.shape import Run
from toolkit.plan.throughput import Estimate, Estimator


@dataclass(frozen=True)
class Sizing:
    """What a run would take."""

    run: Run
    hardware: Hardware
    parameters: int
    active_parameters: int
    """What one token meets; fewer than all with experts."""
    memory: tuple[StageMemory, ...]
    estimate: Estimate
    cost: Cost

    @property
    def fullest(self) -> StageMemory:
        """The stage whose ranks need most."""
        return largest(self.memory)

    @property
    def fits(self) -> bool:
        """Whether the fullest rank fits its GPU."""
        return self.fullest.total <= self.hardware.gpu.memory


def hardware_of(
    gpu_type: str | None, gpus_per_node: int, network: str, planning: Planning
) -> Hardware:
    """The hardware that a cluster's profile describes.

    Raises:
        ToolkitError: the profile has no GPUs, or some that there are no constants for.
    """
    name = planning.gpu or gpu_type
    if not gpus_per_node or name is None:
        what = "no GPUs" if not gpus_per_node else "no type of its GPUs"
        raise ToolkitError(
            f"the cluster's profile names {what}, and a plan is for one",
            hint="node: {gpus: 8, gpu_type: h100}, or planning: {gpu: h100}",
        )
    rate = planning.network_gbps / 8 if planning.network_gbps else NETWORK[network]
    joined = max(gpus_per_node, planning.nvlink_domain or 0)
    hardware = Hardware(find_gpu(name), joined, rate * NETWORK_SHARE * GIGA)
    return hardware.calibrated(**{name: getattr(planning, name) for name in CALIBRATED})


def size_run(run: Run, hardware: Hardware, tokens: int, planning: Planning) -> Sizing:
    """Memory, speed and cost of a run that the rules accept."""
    whole = (run.model, run.layout, run.precision)
    estimate = Estimator(run.model, run.precision, hardware).estimate(run.layout)
    stages = memory_by_stage(*whole, fragmentation=hardware.tuning.fragmentation)
    return Sizing(
        run=run,
        hardware=hardware,
        parameters=parameter_count(run.model),
        active_parameters=active_parameter_count(run.model),
        memory=tuple(with_padding(stage, *whole) for stage in stages),
        estimate=estimate,
        cost=cost_of(estimate, tokens, hardware.gpu, planning),
    )
