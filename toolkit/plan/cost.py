"""What a token budget takes: days, GPU-hours, money, energy."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from toolkit.errors import ToolkitError
from toolkit.plan.config import Planning
from toolkit.plan.gpu import Gpu
from toolkit.plan.throughput import Estimate

UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


@dataclass(frozen=True)
class Cost:
    """Of a whole training, without restarts, evaluations and saves."""

    tokens: int
    steps: int
    seconds: float
    gpu_hours: float
    price: float | None
    """In ``currency``; None where the profile has no price."""
    currency: str
    megawatt_hours: float
    watts: float
    """Of one GPU, as it was reckoned with."""
    whole_node: bool
    """Whether that has the GPU's share of its node in it."""

    @property
    def days(self) -> float:
        """How long it takes."""
        return self.seconds / 86400


def cost_of(estimate: Estimate, tokens: int, gpu: Gpu, planning: Planning) -> Cost:
    """The cost of ``tokens`` at an estimated speed; a last step that is begun is whole."""
    layout = estimate.layout
    steps = -(-tokens // (layout.global_batch_size * layout.seq_length))
    seconds = steps * estimate.step_seconds
    hours = seconds / 3600 * layout.world_size
    watts = planning.watts or gpu.watts
    return Cost(
        tokens=tokens,
        steps=steps,
        seconds=seconds,
        gpu_hours=hours,
        price=None if planning.gpu_hour is None else hours * planning.gpu_hour,
        currency=planning.currency,
        megawatt_hours=hours * watts * planning.pue / 1e6,
        watts=watts,
        whole_node=planning.watts is not None,
    )


def parse_tokens(text: str) -> int:
    """``15T``, ``300B``, ``1.5e12`` or ``2_000_000`` as a number.

    Raises:
        ToolkitError: it is none, or below one.
    """
    written = text.strip().upper()
    found = re.fullmatch(r"([0-9][0-9_]*(?:\.[0-9]+)?(?:E\+?[0-9]+)?)\s*([KMBT]?)", written)
    number = float(found[1].replace("_", "")) * UNITS[found[2]] if found else 0.0
    if not 1 <= number < math.inf:
        raise ToolkitError(f"{text!r} is no number of tokens", hint="such as 15T, 300B or 1e12")
    return round(number)
