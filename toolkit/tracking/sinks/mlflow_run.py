"""MLflow: one run under one id, opened again by every attempt of the stage."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from toolkit.tracking.config import MlflowSettings
from toolkit.tracking.identity import remember
from toolkit.tracking.job import Ending, Job
from toolkit.tracking.tail import Step

STATUS: dict[Ending, str] = {
    "complete": "FINISHED",
    "failed": "FAILED",
    "interrupted": "KILLED",
    "lost": "FAILED",
}
ID, SENT = "toolkit.run_id", "toolkit.step"
METRICS_AT_ONCE, PARAMS_AT_ONCE, LONGEST_PARAM = 1000, 100, 500
"""What every MLflow server takes in one request, and of one parameter."""


class MlflowRun:
    """A run, found again by a tag.

    MLflow keeps every value of a step that comes twice, so only later ones are sent: the tag
    ``toolkit.step``, written by the request that holds the step, says which it has.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        settings = MlflowSettings.model_validate(job.settings)
        self._tags = settings.tags
        self._experiment = settings.experiment_name or job.run
        uri = settings.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            raise ValueError("neither tracking.mlflow.tracking_uri nor MLFLOW_TRACKING_URI is set")
        if uri.startswith("file:"):  # a choice: MLflow 3 asks whether a folder was really meant
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        self._uri, self._store = uri, re.sub(r"://[^/@]*@", "://", uri)
        self._client = MlflowClient(tracking_uri=uri)
        self._run_id = ""
        self._last = 0
        self._keys: set[str] = set()

    def begin(self) -> int:
        """Create the run, or open it again.

        Raises:
            MlflowException: no server, no key, no right to write there.
        """
        experiment = self._experiment_id()
        run = self._find(experiment) or self._client.create_run(
            experiment, run_name=self._job.stage, tags=self._new_tags()
        )
        self._run_id = run.info.run_id
        self._client.update_run(self._run_id, status="RUNNING")
        place = {"url": self._url(experiment)} if self._uri.startswith("http") else {}
        remember(self._job.folder, self._job.sink, store=self._store, run_id=self._run_id, **place)
        self._keys = set(run.data.metrics)
        for params in _batches(_params(self._job.config, run.data.params), PARAMS_AT_ONCE):
            self._client.log_batch(self._run_id, params=params)
        self._last = int(run.data.tags.get(SENT, -1))
        return self._last

    def rewound(self, last: int, sent: int) -> int:
        """What it has, it keeps: the steps up to ``sent``."""
        return sent

    def log(self, steps: list[Step]) -> None:
        """Send the steps, in as few requests as MLflow's limits allow."""
        waiting: list[Metric] = []
        for step in steps:
            if len(waiting) + len(step.values) > METRICS_AT_ONCE:
                self._send(waiting)
                waiting = []
            waiting += [
                Metric(_name(key), value, round(step.time * 1000), step.step)
                for key, value in step.values.items()
            ]
            self._last = step.step
        self._send(waiting)

    def finish(self, end: Ending, results: Mapping[str, float | str]) -> None:
        """Results become metrics at the last step, and tags where they are texts."""
        moment = round(time.time() * 1000)
        numbers = [
            Metric(_name(key), float(value), moment, max(0, self._last))
            for key, value in results.items()
            if not isinstance(value, str) and _name(key) not in self._keys
        ]
        texts = [RunTag(_name(k), v) for k, v in results.items() if isinstance(v, str)]
        for metrics in _batches(numbers, METRICS_AT_ONCE):
            self._client.log_batch(self._run_id, metrics=metrics)
        for tags in _batches(texts, PARAMS_AT_ONCE):
            self._client.log_batch(self._run_id, tags=tags)
        self._client.set_terminated(self._run_id, STATUS[end])

    def _send(self, metrics: list[Metric]) -> None:
        if metrics:
            self._keys |= {metric.key for metric in metrics}
            sent = [RunTag(SENT, str(metrics[-1].step))]
            self._client.log_batch(self._run_id, metrics=metrics, tags=sent)

    def _experiment_id(self) -> str:
        found = self._client.get_experiment_by_name(self._experiment)
        if found is not None:
            return str(found.experiment_id)
        try:
            return str(self._client.create_experiment(self._experiment))
        except MlflowException:  # another stage made it in between
            found = self._client.get_experiment_by_name(self._experiment)
            if found is None:
                raise
            return str(found.experiment_id)

    def _find(self, experiment: str) -> Any:
        """The run of the stage's id, if an attempt before this one made it."""
        query = f"tags.`{ID}` = '{self._job.run_id}'"
        return next(iter(self._client.search_runs([experiment], query)), None)

    def _new_tags(self) -> dict[str, str]:
        job = self._job
        own = {ID: job.run_id, "toolkit.run": job.run, "toolkit.kind": job.kind}
        return {**self._tags, **own}

    def _url(self, experiment: str) -> str:
        return f"{self._store.rstrip('/')}/#/experiments/{experiment}/runs/{self._run_id}"


def _name(key: str) -> str:
    """A metric's or parameter's name, of the characters that every MLflow server takes."""
    return re.sub(r"[^\w\-./ ]", "_", key, flags=re.ASCII)


def _params(config: Mapping[str, Any], known: Mapping[str, str]) -> Iterator[Param]:
    """The settings with dotted names; those of the first attempt stay, MLflow changes none."""
    for key, value in _flat(config):
        if _name(key) not in known:
            yield Param(_name(key), str(value)[:LONGEST_PARAM])


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of at most ``size`` (``itertools.batched`` came with Python 3.12)."""
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
