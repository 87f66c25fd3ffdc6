"""One rank of a preflight: it looks, meets the others, and does what rank 0 says."""

from __future__ import annotations

import faulthandler
import logging
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from toolkit.errors import ExitCode, ToolkitError
from toolkit.preflight import gpus
from toolkit.preflight.config import Preflight
from toolkit.preflight.links import Figures, Links, Round, measure_links
from toolkit.preflight.node import look_at_node, same_everywhere
from toolkit.preflight.record import (
    leave_word,
    listed_nodes,
    note_unfit,
    read_words,
    write_verdict,
)
from toolkit.preflight.report import Finding, Report, read_report
from toolkit.preflight.verdict import Verdict, absent, judge

logger = logging.getLogger("toolkit.preflight")
MEASURING = 100.0
"""Seconds for one round of all-reduces: a group gives up its meeting, or its work, before."""
CLOCK = 20.0
FAREWELL = 5.0
SETTLE = 3.0
"""Seconds from a silence until a rank ends by it: where all are told to stop, and rank 0 heard it
first, the others are to end by that word, and not to make it look like a node's fault."""
GRACE = 30.0
"""Seconds beyond the time of whatever a rank is at, until it writes its stacks to its log and ends,
whatever holds it: a driver that hangs, say."""


@dataclass(frozen=True)
class Place:
    """Which rank this process is, and where."""

    rank: int
    world_size: int
    local_rank: int
    node: str
    host: str
    """Where rank 0 is: MASTER_ADDR."""
    port: int
    gpus: int
    """That the job has on each node; 0: ranks work on the CPU."""


def run_rank(stage: Path, folder: Path, place: Place, settings: Preflight) -> ExitCode:
    """Look at this rank's node, and take part in what the ranks measure together.

    Args:
        stage: the stage's folder.
        folder: of this attempt, in it.
        place: which rank this is.
        settings: floors and times.

    Returns:
        OK; NODE_UNFIT where a node is named; USER_ERROR where all nodes fail alike.
    """
    deadline = time.monotonic() + settings.timeout_seconds
    _end_after(settings.timeout_seconds)
    started = time.monotonic()
    report = Report(place.rank, place.local_rank, place.node)
    leave_word(folder, report)
    report = _look(report, stage, place, settings)
    leave_word(folder, replace(report, looked=True))
    from toolkit.preflight.meeting import Meeting, Silence

    try:
        meeting = Meeting(place.host, place.port, place.rank, deadline - time.monotonic())
        report = _look_together(meeting, report, place, deadline)
        report = replace(report, looked=True, seconds=time.monotonic() - started)
        leave_word(folder, report)
        meeting.say(f"report/{place.rank}", report.text())
        if place.rank == 0:
            return _lead(Chair(meeting, place, settings, stage, folder, deadline))
        return _follow(meeting, place, deadline)
    except Silence as error:
        time.sleep(SETTLE)
        logger.error("%s", error)
        return ExitCode.NODE_UNFIT


def _end_after(seconds: float) -> None:
    """Wind up the clock that ends this process when it hangs; a thread in C keeps it."""
    faulthandler.dump_traceback_later(seconds + GRACE, exit=True)


def _look(report: Report, stage: Path, place: Place, settings: Preflight) -> Report:
    """What can be found before the ranks meet, and before any of them uses a GPU."""
    versions = same_everywhere()
    findings: list[Finding] = []
    if place.local_rank == 0:
        findings += look_at_node(stage, settings)
        if place.gpus:
            known, wrong = gpus.driver()
            findings += [wrong] if wrong else gpus.look_at_gpus(known, place.gpus)
            versions |= {"driver": known[0]["driver_version"]} if known else {}
    return replace(report, findings=tuple(findings), versions=versions)


def _look_together(meeting: Any, report: Report, place: Place, deadline: float) -> Report:
    """A rank uses its GPU once its node's first rank has seen who else does."""
    if not place.gpus:
        return report
    key = f"looked/{place.node}"
    if place.local_rank == 0:
        meeting.say(key, True)
    meeting.hear(key, deadline - time.monotonic())
    findings, uuid, versions = gpus.use_gpu(place.local_rank, place.gpus)
    return replace(
        report,
        findings=(*report.findings, *findings),
        versions={**report.versions, **versions},
        gpu=uuid,
    )


@dataclass
class Chair:
    """What rank 0 has at hand."""

    meeting: Any
    place: Place
    settings: Preflight
    stage: Path
    folder: Path
    deadline: float
    steps: int = 0

    def tell(self, what: str, **more: Any) -> None:
        """Tell every rank what is next."""
        _end_after(MEASURING)
        self.meeting.say(f"step/{self.steps}", {"do": what, **more})
        self.steps += 1


def _lead(chair: Chair) -> ExitCode:
    """Rank 0: hear everybody, judge, have links measured, and write down what came of it."""
    keys = [f"report/{rank}" for rank in range(chair.place.world_size)]
    said = chair.meeting.hear_all(keys, chair.deadline)
    reports = [read_report(text) for text in said.values()]
    came = {report.rank: report.node for report in reports}
    verdict, links = Verdict(), Links()
    skews: dict[str, float] = {}
    if len(came) < chair.place.world_size:
        verdict = judge(reports, skews, chair.settings)
        gone = absent(came, read_words(chair.folder), listed_nodes(chair.folder))
        for node, reason in gone.items():
            verdict.add(node, reason)
        if not gone:
            missing = sorted(set(range(chair.place.world_size)) - set(came))
            verdict.common.append(f"ranks {missing} did not come")
    else:
        skews, silent = _clocks(chair, reports)
        verdict = judge(reports, skews, chair.settings)
        for node in silent:
            verdict.add(node, f"clock: no answer within {CLOCK:.0f} s")
        if verdict.fit:
            links = _measure(chair, reports)
            verdict = Verdict({n: [why] for n, why in links.unfit.items()}, links.common)
    write_verdict(chair.folder, verdict, links, reports, skews)
    note_unfit(chair.stage)
    _log(verdict, links, reports)
    code = ExitCode.OK if verdict.fit else ExitCode.NODE_UNFIT
    code = ExitCode.USER_ERROR if verdict.common else code
    chair.tell("end", code=int(code))
    others = [f"bye/{rank}" for rank in came if rank]
    chair.meeting.hear_all(others, time.monotonic() + FAREWELL)  # the store ends with this process
    return code


def _clocks(chair: Chair, reports: list[Report]) -> tuple[dict[str, float], list[str]]:
    """By node, how far its clock is ahead of rank 0's; and the nodes that gave no answer."""
    first = {report.node: report.rank for report in reports if report.local_rank == 0}
    asked = {node: rank for node, rank in first.items() if rank}
    chair.tell("clock", ranks=list(asked.values()))
    skews = {chair.place.node: 0.0}
    silent = []
    for node, rank in asked.items():
        _end_after(CLOCK)
        try:
            skews[node] = chair.meeting.ask_clock(rank, CLOCK)
        except ToolkitError as error:
            logger.error("%s: %s", node, error)
            silent.append(node)
    return skews, silent


def _measure(chair: Chair, reports: list[Report]) -> Links:
    nodes: dict[str, list[int]] = {}
    for report in sorted(reports, key=lambda report: report.rank):
        nodes.setdefault(report.node, []).append(report.rank)
    schedule = measure_links(nodes, chair.settings)
    try:
        plan = next(schedule)
        while True:
            plan = schedule.send(_round(chair, plan))
    except StopIteration as end:
        found: Links = end.value
        return found


def _round(chair: Chair, plan: Round) -> Figures:
    chair.tell("reduce", name=plan.name, groups=plan.groups)
    own = _reduce(chair.meeting, chair.place, plan.name, plan.groups)
    chair.meeting.say(f"{plan.name}/{chair.place.rank}", own)
    keys = {f"{plan.name}/{rank}": rank for group in plan.groups for rank in group}
    heard = chair.meeting.hear_all(keys, time.monotonic() + MEASURING)
    return {keys[key]: figure for key, figure in heard.items()}


def _reduce(meeting: Any, place: Place, name: str, groups: Any) -> float:
    """This rank's figure of a round; 0 where it is in none of the groups."""
    from toolkit.preflight.reduce import AllReduce

    mine = next((group for group in groups if place.rank in group), None)
    if mine is None:
        return 0.0
    device = "cuda" if place.gpus else "cpu"
    return AllReduce(meeting.store, place.rank, device).bandwidth(name, mine)


def _follow(meeting: Any, place: Place, deadline: float) -> ExitCode:
    """Any other rank: do what rank 0 says, until it says that this is the end."""
    for number, seconds in enumerate(_patience(deadline)):
        _end_after(seconds)
        step = meeting.hear(f"step/{number}", seconds)
        _end_after(MEASURING)
        if step["do"] == "clock" and place.rank in step["ranks"]:
            _end_after(len(step["ranks"]) * CLOCK)
            meeting.answer_clock(place.rank, len(step["ranks"]) * CLOCK)
        elif step["do"] == "reduce":
            figure = _reduce(meeting, place, step["name"], step["groups"])
            meeting.say(f"{step['name']}/{place.rank}", figure)
        elif step["do"] == "end":
            with suppress(RuntimeError):  # rank 0 need not wait for it
                meeting.say(f"bye/{place.rank}", True)
            return ExitCode(step["code"])
    raise AssertionError("unreachable: patience has no end")


def _patience(deadline: float) -> Iterator[float]:
    """How long rank 0 may take for each next step: first, it waits for everybody."""
    yield max(1.0, deadline - time.monotonic()) + FAREWELL + CLOCK
    while True:
        yield 2 * MEASURING


def _log(verdict: Verdict, links: Links, reports: list[Report]) -> None:
    for node in dict.fromkeys(report.node for report in reports):
        own = [f for report in reports if report.node == node for f in report.findings]
        speeds = [(" within", links.within.get(node)), (" across", links.across.get(node))]
        own += [Finding(f"busbw{n}", f"{speed:.3g} GB/s") for n, speed in speeds if speed]
        shown = dict.fromkeys(f"{f.check} {f.detail}" for f in own)
        logger.info("%s: %s", node, "; ".join(shown))
    for node, reasons in verdict.unfit.items():
        for reason in reasons:
            logger.error("unfit: %s: %s", node, reason)
    for reason in verdict.common:
        logger.error("no node's own fault: %s", reason)
    if verdict.fit:
        logger.info("fit: %d ranks on %d nodes", len(reports), len({r.node for r in reports}))
