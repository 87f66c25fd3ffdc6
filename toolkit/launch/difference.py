"""What a submission has that the last one of its run had not: in scripts, and in the code."""

from __future__ import annotations

import difflib
import filecmp
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from toolkit.launch.code import DIFF, RECORD, Code
from toolkit.launch.named import named
from toolkit.launch.rendered import RenderedJob
from toolkit.launch.submissions import last_scripts, read_submissions

Change = tuple[tuple[str, ...], tuple[str, ...]]
"""Lines that went, and lines that came in their place."""


def changes(run: Path, jobs: Sequence[RenderedJob], code: Code | None) -> str:
    """What differs between jobs and the last ones of their names that were sent for a run.

    A change that many scripts share is told once; empty where nothing was sent before, or nothing
    differs.
    """
    sent = [s for s in read_submissions(run) if not s.withdrawn]
    if not sent:
        return ""
    before = last_scripts(run)
    for old in [s.code for s in sent]:  # scripts hold the code's digest: that is told below
        if code and old:
            before = {n: t.replace(old["digest"], code.digest) for n, t in before.items()}
    lines = list(_code_lines(run, sent[-1].code, code))
    new = [job.name for job in jobs if job.file not in before]
    lines += [f"new: {named(new)}"] if new else []
    lines += _script_lines(before, jobs)
    return "\n".join(lines)


def _code_lines(run: Path, old: Mapping[str, object] | None, code: Code | None) -> Iterator[str]:
    if old is None or code is None:
        if (old is None) != (code is None):
            ways = ["what is installed on the nodes", "a copy of the checkout"]
            yield "code: {} -> {}".format(*ways[:: -1 if code is None else 1])
        return
    if old["digest"] == code.digest:
        return
    commits = [str(old["commit"])[:12], code.commit[:12]]
    commit = f"commit {commits[0]}" if len(set(commits)) == 1 else " -> ".join(commits)
    packed = run / "code" / str(old["digest"])
    if not packed.is_dir():
        yield f"code: {commit}; the last one's copy is gone"
        return
    differs = [
        name
        for name in code.files
        if not (packed / name).is_file()
        or not filecmp.cmp(packed / name, code.root / name, shallow=False)
    ]
    here = {*code.files, RECORD, DIFF}
    there = (str(p.relative_to(packed)) for p in packed.rglob("*") if p.is_file())
    differs += sorted(f"{name} (gone)" for name in there if name not in here)
    yield f"code: {commit}; changed: {named(differs)}"


def _script_lines(before: Mapping[str, str], jobs: Sequence[RenderedJob]) -> list[str]:
    """Each change under the names of the jobs that have it."""
    found: dict[Change, list[str]] = {}
    shown: dict[Change, Change] = {}
    for job in jobs:
        old = before.get(job.file, job.text)
        for change in _changes(old.splitlines(), job.text.splitlines()):
            alike = _without_names(change, job)
            found.setdefault(alike, []).append(job.name)
            shown.setdefault(alike, change)
    lines = []
    for alike, names in found.items():
        gone, came = shown[alike]
        count = f" ({len(names)} jobs)" if len(names) > 1 else ""
        lines.append(f"{named(names)}{count}:")
        lines += [f"  -{line}" for line in gone] + [f"  +{line}" for line in came]
    return lines


def _changes(old: Sequence[str], new: Sequence[str]) -> Iterator[Change]:
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    for what, a, b, c, d in matcher.get_opcodes():
        if what != "equal":
            yield tuple(old[a:b]), tuple(new[c:d])


def _without_names(change: Change, job: RenderedJob) -> Change:
    """A change as any other job would have it: its name and its stage's folder left out."""
    names = re.compile(rf"(?<=[./]){re.escape(job.name)}\b|(?<=/){re.escape(job.stage)}\b")
    gone, came = (tuple(names.sub("<>", line) for line in lines) for lines in change)
    return gone, came
