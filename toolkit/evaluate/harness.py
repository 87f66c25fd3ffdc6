"""Tasks of lm-evaluation-harness (lm_eval), built-in ones and local YAML, without a network."""

from __future__ import annotations

import contextlib
import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from datasets.exceptions import DatasetsError
from jinja2 import TemplateError
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from toolkit.errors import ToolkitError
from toolkit.evaluate.config import HarnessConfig
from toolkit.evaluate.figures import Figure, Kind, Scored
from toolkit.evaluate.subject import Subject

NOTE = (
    "Tasks are run by lm_eval, with its own metrics and prompts; standard errors are those of the "
    "mean over questions."
)
LABELS = {
    "acc": "Accuracy",
    "acc_norm": "Accuracy, length-normalised",
    "exact_match": "Exact match",
    "f1": "F1",
    "word_perplexity": "Perplexity per word",
    "byte_perplexity": "Perplexity per byte",
    "bits_per_byte": "Bits per byte",
}
SHARES = ("acc", "acc_norm", "exact_match", "f1")
"""Metrics between 0 and 1, shown as percentages."""
UNUSABLE = (OSError, ValueError, KeyError, TypeError, DatasetsError, TemplateError)
"""What lm_eval and datasets raise for a task that can't be loaded or doesn't fit its data."""
BOOTSTRAP = 100
"""Resamples for the error of metrics that are no means."""


def harness(subject: Subject, settings: HarnessConfig, source: str) -> list[Scored]:
    """The metrics of one task, or of each task of a group or tag.

    Raises:
        ToolkitError: no such task, its data can't be had, or it doesn't fit its data.
    """
    manager = task_manager(tuple(subject.locate(p) for p in settings.include_path), source)
    try:
        results = _evaluate(subject, settings, manager, source)
    except UNUSABLE as error:
        raise ToolkitError(
            f"lm_eval can't run the task {source}: {type(error).__name__}: {error}",
            hint="built-in tasks fetch their data from the Hugging Face hub on first use; a local "
            "task with dataset_path: json reads files (lm_eval.include_path names its folder)",
        ) from error
    return [_scored(name, source, results) for name in results["results"]]


def task_manager(include_path: tuple[Path, ...], task: str) -> TaskManager:
    """An index in which ``task`` is; the built-in tasks (5 s) are indexed only where needed.

    Raises:
        ToolkitError: there is no such task, with the nearest names.
    """
    if include_path:
        local = _indexed(include_path, False)
        if task in local.all_tasks:
            return local
    everything = _indexed(include_path, True)
    if task in everything.all_tasks:
        return everything
    near = difflib.get_close_matches(task, everything.all_tasks, n=3)
    folders = ", ".join(str(p) for p in include_path) or "none given"
    raise ToolkitError(
        f"lm_eval has no task {task!r}" + (f"; near: {', '.join(near)}" if near else ""),
        hint=f"looked in lm_eval's own tasks and in include_path ({folders}); a local task's name "
        "is its `task:`",
    )


@lru_cache(maxsize=4)
def _indexed(include_path: tuple[Path, ...], defaults: bool) -> TaskManager:
    for folder in include_path:
        if not folder.is_dir():
            raise ToolkitError("lm_eval.include_path is no folder", where=str(folder))
    return TaskManager(include_path=list(include_path), include_defaults=defaults)


def _evaluate(
    subject: Subject, settings: HarnessConfig, manager: TaskManager, task: str
) -> Mapping[str, Any]:
    path = manager.task_index[task].yaml_path
    # A local task's data_files are relative to its own file, wherever the pipeline runs.
    with contextlib.chdir(path.parent) if path else contextlib.nullcontext():
        loaded = manager.load([task])
        tasks = [*loaded["groups"].values()] or [*loaded["tasks"].values()]
        results = simple_evaluate(
            model=_wrap(subject, settings.chat),
            tasks=tasks,
            task_manager=manager,
            num_fewshot=settings.num_fewshot,
            limit=settings.limit,
            apply_chat_template=settings.chat,
            bootstrap_iters=BOOTSTRAP,
            random_seed=subject.seed,
            numpy_random_seed=subject.seed,
            torch_random_seed=subject.seed,
            fewshot_random_seed=subject.seed,
        )
    assert results is not None, "lm_eval returns None on ranks other than 0; there is one"
    return dict(results)


def _wrap(subject: Subject, chat: bool) -> HFLM:
    tokenizer = subject.tokenizer
    if chat and subject.chat_template and not tokenizer.chat_template:
        tokenizer.chat_template = subject.chat_template
    return HFLM(
        pretrained=subject.model,
        tokenizer=tokenizer,
        device=str(subject.model.device),
        max_length=subject.windows.seq_length,
        batch_size=subject.windows.batch_size,
    )


def _scored(task: str, asked: str, results: Mapping[str, Any]) -> Scored:
    """One task, or a group over its tasks. Of a group the headline is its own, where it has one."""
    figures = list(_figures(task, results))
    if asked in results["results"] and task != asked:
        figures = [replace(f, kind=replace(f.kind, headline=False)) for f in figures]
    read = results["n-samples"].get(task, {})
    counts = {"questions": read.get("effective"), "of": read.get("original")}
    return Scored(task, tuple(figures), {**counts, "num_fewshot": results["n-shot"].get(task)})


def _figures(task: str, results: Mapping[str, Any]) -> Iterator[Figure]:
    """One for each metric and filter; the first is the headline."""
    row, samples = results["results"][task], results["samples"].get(task, ())
    questions = results["n-samples"].get(task, {}).get("effective", 0)
    headline = True
    for key, value in row.items():
        metric, _, chosen = key.partition(",")
        if not chosen or metric.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        error = row.get(f"{metric}_stderr,{chosen}")
        higher = results["higher_is_better"].get(task, {}).get(metric)
        suffix = "" if chosen == "none" else f" ({chosen})"
        kind = Kind(
            metric + suffix,
            LABELS.get(metric, metric) + suffix,
            unit="questions",
            better=None if higher is None else ("higher" if higher else "lower"),
            headline=headline,
            percent=metric in SHARES,
        )
        headline = False
        items = _items(samples, metric, chosen, value)
        if items:
            yield Figure(kind, items, [1.0] * len(items))
        else:
            known = float(error) if isinstance(error, (int, float)) else None
            yield Figure(kind, given=(float(value), known, questions))


def _items(
    samples: Sequence[Mapping[str, Any]], metric: str, chosen: str, value: float
) -> list[float]:
    """Each question's own result, in order, where the metric is their mean; else none."""
    rows = sorted((s for s in samples if s.get("filter") == chosen), key=lambda s: s["doc_id"])
    found = [row.get(metric) for row in rows]
    numbers = [float(v) for v in found if isinstance(v, (int, float))]
    if not numbers or len(numbers) < len(found):
        return []
    mean = math.fsum(numbers) / len(numbers)
    return numbers if math.isclose(mean, value, rel_tol=1e-9, abs_tol=1e-12) else []
