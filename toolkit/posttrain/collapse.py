"""The alarm for a DPO run in which both answers become unlikely, the rejected one just faster.

The loss rewards the margin between the answers alone, so the chosen answers' own log-probability
may fall (Razin et al., arXiv:2410.08847); the text that takes their place is neither of the two.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from toolkit.errors import StageError

logger = logging.getLogger(__name__)

WINDOW = 5
"""Logged steps that are averaged, so that one odd batch raises no alarm."""
REMEDY = (
    "add sft to loss_type (loss_type: [sigmoid, sft]), lower learning_rate or raise beta; "
    "collapse_threshold and on_collapse set this alarm"
)


@dataclass(frozen=True)
class Collapse:
    """The moment at which the alarm went off."""

    step: int
    fall: float
    """By how much the chosen answers' log-probability fell, in nats per token."""
    margin: float
    """The reward margin at the same time."""


class CollapseAlarm:
    """Watches DPO's metrics; ``rewards/chosen`` is beta times the log-probability gained.

    Args:
        beta: the loss's.
        answer_tokens: mean length of a chosen answer.
        threshold: nats per token.
        stop: whether the alarm ends the training.
    """

    def __init__(self, beta: float, answer_tokens: float, threshold: float, stop: bool) -> None:
        self._per_token = 1 / (beta * answer_tokens)
        self.threshold, self.stop = threshold, stop
        self.collapse: Collapse | None = None
        """The first alarm."""
        self.largest_fall = 0.0
        self._falls: deque[float] = deque(maxlen=WINDOW)
        self._margins: deque[float] = deque(maxlen=WINDOW)

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        """Look at the metrics of one step of training; those of an evaluation are passed over.

        Raises:
            StageError: the alarm went off, and is set to end the training.
        """
        if "rewards/chosen" not in metrics:
            return
        self._falls.append(-metrics["rewards/chosen"] * self._per_token)
        self._margins.append(metrics["rewards/margins"])
        fall, margin = _mean(self._falls), _mean(self._margins)
        self.largest_fall = max(self.largest_fall, fall)
        full = len(self._falls) == WINDOW
        if full and self.collapse is None and fall > self.threshold and margin > 0:
            self._alarm(Collapse(step, fall, margin))

    def as_info(self) -> dict[str, Any]:
        """Plain values for an artifact's ``info``."""
        first = self.collapse
        return {
            "collapsed": first is not None,
            "at_step": first.step if first else None,
            "largest_fall": self.largest_fall,
            "threshold": self.threshold,
        }

    def _alarm(self, collapse: Collapse) -> None:
        self.collapse = collapse
        message = (
            f"the chosen answers become unlikely: by step {collapse.step} their log-probability "
            f"fell by {collapse.fall:.2f} nats per token, while the margin over the rejected ones "
            f"grew to {collapse.margin:.2f}"
        )
        if self.stop:
            raise StageError(message, hint=REMEDY)
        logger.warning("%s; %s", message, REMEDY)


def _mean(values: deque[float]) -> float:
    return sum(values) / len(values)
