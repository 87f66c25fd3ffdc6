"""The trackers, one file each; imported by name, in the process that needs it alone."""

from __future__ import annotations

import importlib

from toolkit.tracking.job import Job, Sink

CLASSES = {
    "wandb": "wandb_run:WandbRun",
    "mlflow": "mlflow_run:MlflowRun",
    "tensorboard": "tensorboard_events:TensorBoardEvents",
}


def make_sink(job: Job) -> Sink:
    """The sink of a job; imports its library."""
    module, _, name = CLASSES[job.sink].partition(":")
    sink: Sink = getattr(importlib.import_module(f"{__name__}.{module}"), name)(job)
    return sink
