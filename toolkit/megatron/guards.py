"""What to do when the loss goes wrong: a value that is not finite, or a jump."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from toolkit.megatron.settings import MonitorSettings


@dataclass(frozen=True)
class Verdict:
    """Why a batch must not change the weights, and what to do about it."""

    reason: str
    action: Literal["stop", "skip"]


class LossGuard:
    """Judges each batch by its loss. All ranks see the same losses, and so judge alike.

    A spike is a loss over ``loss_spike_factor`` times the median of the last
    ``loss_spike_window`` accepted losses; before the window is full nothing is a spike.
    """

    def __init__(self, settings: MonitorSettings, history: Sequence[float] = ()) -> None:
        self.settings = settings
        self._window = deque(history, maxlen=settings.loss_spike_window)

    @property
    def history(self) -> list[float]:
        """The accepted losses in the window; saved, so that a resumed run judges alike."""
        return list(self._window)

    def judge(self, loss: float) -> Verdict | None:
        """None where the batch is good."""
        if not math.isfinite(loss):
            return self.not_finite(f"the loss is {loss}")
        if self.settings.on_loss_spike != "off" and len(self._window) == self._window.maxlen:
            usual = statistics.median(self._window)
            limit = usual * self.settings.loss_spike_factor
            if loss > limit:
                reason = (
                    f"the loss jumped to {loss:.4g}; the median of the last {len(self._window)}"
                    f" is {usual:.4g}, the limit {limit:.4g}"
                )
                return Verdict(reason, self.settings.on_loss_spike)
        self._window.append(loss)
        return None

    def not_finite(self, reason: str) -> Verdict:
        """The verdict on a loss or gradient that is not finite."""
        return Verdict(reason, self.settings.on_nan)
