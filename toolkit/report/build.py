"""Builds the report of a run: one HTML page that needs nothing else.

Nothing that comes from data reaches the page but through Jinja's autoescape, and the page's
Content-Security-Policy allows no script but its own, by hash, and no address at all.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import toolkit
from toolkit.artifacts import now, write_text
from toolkit.errors import ToolkitError
from toolkit.evaluate.scores import (
    SCORES,
    Change,
    Row,
    Scores,
    Value,
    Written,
    read_generations,
    read_scores,
)
from toolkit.evaluate.table import arrow, short_source, written
from toolkit.report import facts, graph
from toolkit.report.curves import Curves, curves
from toolkit.report.data import data_charts, source_names
from toolkit.report.layout import Layout, draw_layout
from toolkit.report.read import RunView, StageView, mapping, moment, read_run
from toolkit.report.scale import duration, number, size

REPORT = "report.html"
HERE = Path(__file__).resolve().parent
DATA_TYPES = ("tokenizer", "documents", "dataset")
NOT_FACTS = frozenset(
    {
        *("layout", "scores", "sources", "per_source", "shards", "document_lengths.histogram"),
        *(
            "drops",
            "changed",
            "languages",
            "pii",
            "dedup",
            "decontamination",
            "weights",
            "blend",
            "parts",
        ),
        *(f"packing.{n}" for n in ("tokens", "trained_tokens", "padding_tokens", "lost_tokens")),
    }
)
"""Keys of ``info`` that have a place of their own on the page."""
NEWLINE = "\n"
BLANKS = re.compile(r"\n(?:[^\S\n]*\n){3,}")
"""More than two blank lines in a row, as small models write by the dozen."""


@dataclass(frozen=True)
class Evaluation:
    """One ``evaluate`` stage: its table, and what the models wrote."""

    stage: str
    scores: Scores
    groups: list[tuple[str, str, list[Row]]]
    """(measure, source, rows) in the table's order."""
    prompts: dict[str, list[Written]]


def build_report(run_dir: Path) -> Path:
    """Write ``run_dir/report.html`` from what is in the folder, whole or not; returns its path.

    Raises:
        ToolkitError: the folder is not a run's, or can't be written to.
    """
    path = run_dir / REPORT
    html = render(read_run(run_dir))
    try:
        write_text(path, html)
    except OSError as error:
        raise ToolkitError(f"can't write the report: {error.strerror}", where=str(path)) from error
    return path


def render(run: RunView) -> str:
    """The page of a run."""
    evaluations, problems = _evaluations(run)
    problems += [f"{stage.name}: {text}" for stage in run.stages for text in stage.problems]
    script = (HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    parents = {stage.name: stage.parents for stage in run.stages}
    return _environment().get_template("page.html.j2").render(
        run=run,
        by_name={stage.name: stage for stage in run.stages},
        complete=sum(stage.state.status == "complete" for stage in run.stages),
        broken=[s for s in run.stages if s.state.status in ("failed", "interrupted")],
        problems=[*run.problems, *problems],
        tiles=_tiles(run, evaluations),
        graphs_drawn=[graph.draw(parents, g) for g in (graph.WIDE, graph.TALL)],
        evaluations=evaluations,
        training=_training(run),
        data=[s for s in run.stages if s.manifest.get("type") in DATA_TYPES],
        layouts=_layouts(run),
        versions=_versions(run),
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        toolkit_version=toolkit.__version__,
        made=now(),
    )  # fmt: skip


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "duration": duration,
        "number": number,
        "size": size,
        "moment": _moment,
        "yaml": _yaml,
        "ellipsis": _ellipsis,
        "generated": _generated,
        "written": facts.written,
    }
    environment.globals |= {
        "facts": lambda stage: [fact for _, fact in _facts(stage)],
        "split_facts": lambda stage: facts.split(_facts(stage)),
        "read_parts": facts.read_parts,
        "data_charts": data_charts,
        "source_names": source_names,
        "score": written,
        "arrow": arrow,
        "short_source": short_source,
        "mapping": mapping,
        "significant": _significant,
        "change": _change,
    }
    return environment


def _evaluations(run: RunView) -> tuple[list[Evaluation], list[str]]:
    """The evaluations that can be read, and what is wrong with the others."""
    found, problems = [], []
    for stage in run.stages:
        folder = stage.folder / "artifact"
        if not (folder / SCORES).is_file():
            continue
        try:
            scores, texts = read_scores(folder), read_generations(folder)
        except ToolkitError as error:
            problems.append(str(error))
            continue
        prompts: dict[str, list[Written]] = {}
        for text in texts:
            prompts.setdefault(text.prompt, []).append(text)
        found.append(Evaluation(stage.name, scores, _groups(scores), prompts))
    return found, problems


def _groups(scores: Scores) -> list[tuple[str, str, list[Row]]]:
    groups: list[tuple[str, str, list[Row]]] = []
    for row in scores.rows:
        if not groups or groups[-1][:2] != (row.measure, row.source):
            groups.append((row.measure, row.source, []))
        groups[-1][2].append(row)
    return groups


def _training(run: RunView) -> list[tuple[StageView, Curves]]:
    drawn = ((s, curves(s.name, s.kind, s.metrics)) for s in run.stages)
    return [(stage, charts) for stage, charts in drawn if charts]


def _layouts(run: RunView) -> list[Layout]:
    drawn = (
        draw_layout(s.name, mapping(s.info.get("layout")), s.config)
        for s in run.stages
        if s.kind == "pretrain"
    )
    return [layout for layout in drawn if layout]


def _versions(run: RunView) -> list[tuple[str, dict[str, list[str]]]]:
    """Each package with its versions, and the stages that ran with each."""
    found: dict[str, dict[str, list[str]]] = {}
    for stage in run.stages:
        for package, version in stage.versions.items():
            found.setdefault(package, {}).setdefault(version, []).append(stage.name)
    return sorted(found.items(), key=lambda item: item[0].lower())


def _tiles(run: RunView, evaluations: list[Evaluation]) -> list[tuple[str, str, str]]:
    """(label, figure, remark): what came out, at a glance."""
    found = []
    for evaluation in evaluations[-1:]:
        for row in evaluation.scores.rows:
            if row.headline and row.figure != "times_below_untrained":
                found += _tile(row, evaluation.scores)
    for stage in run.stages:
        tokens = mapping(stage.info.get("counts")).get("tokens")
        if stage.manifest.get("type") == "dataset" and isinstance(tokens, int):
            found.append(("Tokens of data", number(tokens), stage.name))
        if stage.kind == "pretrain" and isinstance(stage.info.get("parameters"), int):
            found.append(("Parameters", number(stage.info["parameters"]), stage.name))
    return found[:6]


def _tile(row: Row, scores: Scores) -> list[tuple[str, str, str]]:
    """The best model's figure, against the first one's."""
    best = sorted(row.best())
    if not best:
        return []
    value, first = row.values[best[0]], row.values[0]
    assert value is not None, "best() names columns that have a value"
    remark = scores.models[best[0]].name
    if first is not None and best[0] != 0:
        remark += f"; {scores.models[0].name}: {written(row, first)[0]}"
    return [(row.label, written(row, value)[0], remark)]


def _significant(row: Row, index: int) -> str:
    """``better`` or ``worse`` where a change is over two standard errors; else empty."""
    value = row.values[index]
    change = value.change if value else None
    if change is None or not change.standard_error or row.better is None:
        return ""
    if abs(change.value) < 2 * change.standard_error:
        return ""
    return "better" if (change.value < 0) == (row.better == "lower") else "worse"


def _facts(stage: StageView) -> list[tuple[str, facts.Fact]]:
    """What the stage says of its artifact, but for what the page shows in other ways."""
    counted = facts.read_parts(stage.info)
    shown = {f"counts.{part.label}" for part in counted} | ({"counts.read"} if counted else set())
    return facts.facts(stage.info, NOT_FACTS | shown)


def _change(row: Row, change: Change) -> str:
    """``+12.6 ± 2.1 points``, ``−78.1 ± 2.4``."""
    number, error = written(row, Value(abs(change.value), change.standard_error))
    sign = "+" if change.value >= 0 else "−"
    unit = " points" if row.percent else ""
    return f"{sign}{number.removesuffix(' %')}" + (f" ± {error}" if error else "") + unit


def _moment(value: Any) -> str:
    """``2026-03-04 10:55 UTC``."""
    found = moment(value)
    return f"{found:%Y-%m-%d %H:%M} UTC" if found else "–"


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=88)


def _ellipsis(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _generated(text: str) -> str:
    """A generation without the blank lines at its end, and with long runs of them counted."""
    return BLANKS.sub(lambda run: f"\n⋮ {run[0].count(NEWLINE)} line breaks\n", text.rstrip())
