"""How a stage goes: metrics and progress on disk, and passed on to TensorBoard, W&B, MLflow.

``metrics.jsonl`` is the truth. For each sink a process of its own reads it and passes it on: no
library, server or key can end or delay the work, nor get at its signals (see ``senders``).
"""

from toolkit.tracking.metrics import METRICS, PROGRESS, Progress, Tracker, read_metrics

__all__ = ["METRICS", "PROGRESS", "Progress", "Tracker", "read_metrics"]
