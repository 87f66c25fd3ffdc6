"""Slurm's commands: the only place that starts them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import ToolkitError

ACTIVE = frozenset(
    {
        "PENDING",
        "RUNNING",
        "CONFIGURING",
        "COMPLETING",
        "REQUEUED",
        "REQUEUE_HOLD",
        "REQUEUE_FED",
        "SUSPENDED",
        "STOPPED",
        "SIGNALING",
        "STAGE_OUT",
        "RESIZING",
        "SPECIAL_EXIT",
        "RESV_DEL_HOLD",
    }
)
"""The states of a job that has not ended."""
NO_SLURM = ("Could not establish a configuration source", "Unable to contact slurm controller")
"""What its commands say where they are installed, and no cluster is."""
DEFAULTS = ("ACCOUNT", "PARTITION", "QOS", "CONSTRAINT", "RESERVATION")
"""What of ``SBATCH_*`` counts where a script says nothing of it, also in ``submit.sh``."""


@dataclass(frozen=True)
class Job:
    """What Slurm says of a job, or of one task of an array."""

    id: str
    state: str
    """As squeue's %T: PENDING, RUNNING, COMPLETED, ..."""
    reason: str = ""
    nodes: str = ""
    elapsed: int | None = None
    """Seconds since its last start."""
    left: int | None = None
    """Seconds until its time limit."""
    begins: str = ""
    """Of a waiting job: when Slurm expects to start it, in the cluster's time; often unknown."""
    name: str = ""

    @property
    def active(self) -> bool:
        """Whether it may still do something."""
        return self.state in ACTIVE


def here() -> bool:
    """Whether this machine has Slurm's commands."""
    return shutil.which("sbatch") is not None


def call(
    command: Sequence[str], seconds: float = 60.0, environment: Mapping[str, str] | None = None
) -> str:
    """Run one of Slurm's commands; returns what it printed.

    Args:
        command: its words.
        seconds: how long it may take.
        environment: in place of this process's.

    Raises:
        ToolkitError: it is not there, it refused, or it took longer than ``seconds``.
    """
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            env=environment,
            start_new_session=True,  # Ctrl-C is for this process: sbatch is to tell its job's id
        )
    except FileNotFoundError as error:
        hint = "run this where Slurm's commands are: on a login node"
        raise ToolkitError(f"there is no {command[0]} here", hint=hint) from error
    except subprocess.TimeoutExpired as error:
        message = f"{command[0]} gave no answer within {seconds:.0f} s"
        raise ToolkitError(message, hint="is the controller up? scontrol ping") from error
    if done.returncode:
        text = (done.stderr or done.stdout).strip() or f"exit code {done.returncode}"
        raise ToolkitError(f"{command[0]} refused: {_sentence(text)}")
    return done.stdout


def _sentence(text: str) -> str:
    """Slurm's errors without the program's name in front of each line."""
    lines = [line.split(": ", 2)[-1] for line in text.splitlines() if line.strip()]
    return "; ".join(dict.fromkeys(lines))


def unreachable(message: str) -> bool:
    """Whether a refusal says that no Slurm could be asked, and nothing about the script."""
    return any(words in message for words in NO_SLURM)


def test_only(script: str) -> str | None:
    """Why sbatch would refuse a script; None: it would take it.

    It looks at options, partition, counts and sizes; not at dependencies, nor at paths.
    """
    try:
        call(["sbatch", "--test-only", script], environment=environment_for(script))
    except ToolkitError as error:
        return error.message
    return None


def submit(command: Sequence[str]) -> str:
    """Run an ``sbatch --parsable`` command, the script last; returns the job's id."""
    said = call(command, environment=environment_for(command[-1]))
    return said.strip().partition(";")[0]


def environment_for(script: str) -> dict[str, str]:
    """This process's environment, without what would win over a script's own options.

    To sbatch ``SBATCH_TIMELIMIT`` and the like count more than ``#SBATCH`` lines: a site's
    ``SBATCH_EXPORT=NONE`` would keep a job's secrets from it.
    """
    text = Path(script).read_text(encoding="utf-8")
    left = {f"SBATCH_{n}" for n in DEFAULTS if f"\n#SBATCH --{n.lower()}=" not in text}
    return {n: v for n, v in os.environ.items() if not n.startswith("SBATCH_") or n in left}


def cancel(ids: Iterable[str]) -> None:
    """Cancel jobs; the ones that have ended already are no mistake."""
    names = list(ids)
    if names:
        call(["scancel", "--quiet", *names])


def jobs(ids: Sequence[str]) -> dict[str, list[Job]]:
    """What Slurm knows of jobs, by id: a list each, longer than one for arrays.

    A job that neither squeue nor the accounting knows has an empty list.

    Raises:
        ToolkitError: squeue gives no answer.
    """
    found, trouble = look(ids)
    if trouble:
        raise ToolkitError(trouble, hint="is the controller up? scontrol ping")
    return found


def look(ids: Sequence[str]) -> tuple[dict[str, list[Job]], str | None]:
    """What Slurm knows of jobs, as ``jobs`` has it, and why squeue didn't answer, if it didn't.

    From squeue, which forgets jobs minutes after their end (MinJobAge), then from the accounting
    where there is one; it goes on to answer while the controller is down.
    """
    found: dict[str, list[Job]] = {i: [] for i in ids}
    trouble = None
    try:
        for job in _squeue(ids) if ids else ():
            found[_root(job.id)].append(job)
    except ToolkitError as error:
        trouble = error.message
    missing = [i for i, known in found.items() if not known]
    for job in _sacct(missing) if missing else ():
        found[_root(job.id)].append(job)
    return found, trouble


def queued_scripts() -> list[tuple[str, str, str]]:
    """This user's jobs that squeue knows: id, name, and the path of the script each was sent as.

    Raises:
        ToolkitError: squeue gives no answer.
    """
    text = call(["squeue", "--me", "--noheader", "--states=all", "--format=%F|%o|%j"])
    rows = [line.split("|", 2) for line in text.splitlines()]
    return [(number, name, script.strip()) for number, script, name in rows]


def seconds(text: str) -> int | None:
    """A duration as squeue and sacct write it (``1-02:03:04``, ``4:05``); None for words.

    Slurm's words are UNLIMITED, INVALID, NOT_SET and Partition_Limit.
    """
    days, dash, clock = text.strip().rpartition("-")
    parts = clock.partition(".")[0].split(":")
    if not all(part.isdigit() for part in (*parts, *([days] if dash else []))):
        return None
    hours, minutes, rest = (*(0,) * (3 - len(parts)), *map(int, parts))
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + rest


def _root(task: str) -> str:
    """The id of the array that a task belongs to."""
    return task.partition("_")[0]


def _squeue(ids: Sequence[str]) -> list[Job]:
    fields = "%i|%T|%r|%N|%M|%L|%S|%j"
    command = ["squeue", "--noheader", "--array", "--states=all", f"--format={fields}"]
    try:
        text = call([*command, f"--jobs={','.join(ids)}"])
    except ToolkitError as error:
        if "Invalid job id" in error.message:  # one id alone, and it is forgotten
            return []
        raise
    rows = [line.split("|", 7) for line in text.splitlines()]
    return [
        Job(number, state, reason, nodes, seconds(elapsed), seconds(left), begins, name)
        for number, state, reason, nodes, elapsed, left, begins, name in rows
        if _root(number) in ids
    ]


def _sacct(ids: Sequence[str]) -> list[Job]:
    """From the accounting; nothing where there is none: sacct ends with an error then."""
    fields = "JobID,State,Reason,NodeList,Elapsed,JobName%-200"
    try:
        text = call(["sacct", "-X", "-n", "-P", f"--format={fields}", f"--jobs={','.join(ids)}"])
    except ToolkitError:
        return []
    rows = [line.split("|", 5) for line in text.splitlines() if line.strip()]
    return [
        Job(number, state.partition(" ")[0], reason, nodes, seconds(elapsed), name=name)
        for number, state, reason, nodes, elapsed, name in rows
        if _root(number) in ids
    ]
