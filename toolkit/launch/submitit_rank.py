"""What submitit pickles, and calls in each task of a job: one rank of a stage.

The rank is a child process, ``python -m toolkit.worker STAGE_DIR``, in its container if it needs
one: the stage's own threads and signals stay apart from submitit's. Here are settings alone; no
secret is in them, for a pickle lies on a disk that others may read.

submitit's protocol: ahead of the time limit Slurm sends SIGUSR2, submitit's handler calls
``checkpoint()`` in the first task, writes what it returns over the job's pickle, and puts the job
back into the queue (``submitit/core/job_environment.py``, ``SignalHandler``). Other signals than
that, submitit ignores or dies of: they are passed on here.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from toolkit.artifacts import MANIFEST, now, write_json, write_text
from toolkit.attempt import ERRORS
from toolkit.errors import STOPPED, ExitCode, StageError
from toolkit.launch.command import NOTE_START
from toolkit.launch.going_on import GOING_ON, GoingOn, read_going_on
from toolkit.tracking import PROGRESS

SIGNAL = signal.SIGUSR2
"""What Slurm sends ahead of the time limit: submitit's own choice."""
START = f"""\
{NOTE_START}\
trap '' {SIGNAL.name.removeprefix("SIG")}  # it is submitit's
exec "$@\""""
"""What bash runs first in the child. Slurm may signal a task alone, or all that it started: the
worker must live through what is submitit's to act on."""


class _Ended(BaseException):
    """Out of submitit's handler: the child has ended for reasons of its own, and isn't requeued."""


@dataclass
class Rank:
    """One rank of a stage; called with its number where it is one task of an array."""

    folder: str
    """The stage's."""
    command: Sequence[str]
    rendezvous: bool
    """Whether the stage is done when its artifact is there, and not when this rank ends with 0."""
    array: bool
    requeue: bool
    max_restarts: int
    time_limit: int
    """In minutes."""
    name: str
    """The job's, in the pipeline."""
    _child: subprocess.Popen[bytes] | None = field(
        default=None, init=False, repr=False, compare=False
    )
    _started: float = field(default=0.0, init=False, repr=False, compare=False)
    _told: set[int] = field(default_factory=set, init=False, repr=False, compare=False)
    """The signals that were passed on to the child."""

    def __call__(self, number: int = 0) -> str:
        """Start the worker and wait for it; returns the stage's artifact folder.

        Raises:
            StageError: the worker failed; the process's exit code will be the worker's.
            SystemExit: it was stopped, with its exit code; submitit then writes no result.
        """
        import submitit

        place = submitit.JobEnvironment()
        place.paths.result_pickle.unlink(missing_ok=True)  # of a start that failed
        rank = number if self.array else place.global_rank
        self._started = time.time()
        self._child = self._start(rank, {} if self.array else _ranks(place))
        self._pass_on_signals(first=self.array or rank == 0)
        try:
            code = self._wait()
        except _Ended:
            code = self._wait()
        for late in (SIGNAL, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(late, signal.SIG_IGN)  # there is nothing left to stop
        self._child.wait()
        return self._outcome(rank, code)

    def checkpoint(self, number: int = 0) -> Any:
        """Have the worker save and end; what submitit is to call when the job runs again.

        Raises:
            SystemExit: submitit is not to put the job back into the queue: its script then does, or
                says why not.
        """
        import submitit

        self._tell(signal.SIGUSR1)
        code = self._wait()
        if not self._stopped(code):
            raise _Ended
        # In a container there may be no scontrol, which submitit calls.
        if not self.requeue or shutil.which("scontrol") is None or not self._counted(number):
            raise SystemExit(_plain(code))
        return submitit.helpers.DelayedSubmission(replace(self), *([number] if self.array else []))

    def _counted(self, number: int) -> bool:
        """Note that the job is started again, as ``slurm/going_on.sh.j2`` does, if it may be.

        A signal in the first half of the time, as of a preemption, is not held against a job.
        """
        name = f"{self.name}-{number}" if self.array else self.name
        told, job = read_going_on(Path(self.folder)).get(name), _job()
        told = told if told and told.job == job else None
        before, restarts = (told.step, told.restarts + 1) if told else (-1, 1)
        step = _step(Path(self.folder)) if self.rendezvous else before
        ran = time.time() - self._started if self._started else 0.0
        late = ran > 0.5 * 60 * self.time_limit
        if restarts > self.max_restarts or (self.rendezvous and late and step <= before):
            return False
        where = f" at step {step}" if self.rendezvous else ""
        note = GoingOn(
            job=job,
            link=1,
            links=1,
            restarts=restarts,
            max_restarts=self.max_restarts,
            step=step,
            ended=False,
            reason=f"stopped ahead of the time limit{where}: started again",
            time=now(),
        )
        path = Path(self.folder) / GOING_ON / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        write_text(path, json.dumps(asdict(note)) + "\n")  # one line: bash reads it, too
        return True

    def _start(self, rank: int, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        log = Path(self.folder) / "logs" / f"rank-{rank}.log"
        with log.open("ab") as stream:
            return subprocess.Popen(
                ["bash", "-c", START, "rank", *self.command],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
            )

    def _pass_on_signals(self, first: bool) -> None:
        """Pass on what submitit doesn't act on: of its own signal only the first task does."""
        signal.signal(signal.SIGTERM, self._forward)
        signal.signal(signal.SIGUSR1, self._forward)
        if not first:
            signal.signal(SIGNAL, self._forward)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        self._tell(signal.SIGUSR1 if number == SIGNAL else signal.Signals(number))

    def _tell(self, number: signal.Signals) -> None:
        self._told.add(number)
        if self._child is not None:
            with suppress(ProcessLookupError):
                os.kill(self._child.pid, number)

    def _wait(self) -> int:
        """The child's exit code, or minus the signal that ended it; it stays to be waited for.

        Unlike ``Popen.wait``, which holds a lock: a signal's handler may call this while this runs.
        It may also come before there is a child: then there is nothing to wait for.
        """
        if self._child is None:
            return ExitCode.INTERRUPTED
        ended = os.waitid(os.P_PID, self._child.pid, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def _complete(self, code: int) -> bool:
        artifact = Path(self.folder) / "artifact" / MANIFEST
        return code == ExitCode.OK and (not self.rendezvous or artifact.is_file())

    def _stopped(self, code: int) -> bool:
        """Whether it ended because it was told to: perhaps before it could listen.

        Ranks that meet end with 0 when they are stopped, too (see ``worker.QUIET_STOP``).
        """
        if code < 0:
            return -code in self._told
        return code in STOPPED or (code == ExitCode.OK and not self._complete(code))

    def _outcome(self, rank: int, code: int) -> str:
        if rank > 0 and code == ExitCode.OK and not self.array:
            return ""  # the first rank says whether the stage is done
        if self._stopped(code):
            raise SystemExit(_plain(code))
        if not self._complete(code):
            _exit_with(code if code > 0 else 128 - code)
            raise self._reason(rank, code)
        return str(Path(self.folder) / "artifact")

    def _reason(self, rank: int, code: int) -> StageError:
        """Why the rank failed, as the worker left it; what it could not leave is left for it."""
        path = Path(self.folder) / ERRORS / f"rank-{rank}.json"
        found = _read(path)
        if code < 0 or not found:
            how = (
                f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
            )
            found = {"message": f"rank {rank} {how}", "where": None, "hint": None}
            path.parent.mkdir(exist_ok=True)
            write_json(path, {"time": time.time(), **found})
        return StageError(found["message"], where=found.get("where"), hint=found.get("hint"))


def _ranks(place: Any) -> dict[str, str]:
    """A rank's place among the others, by submitit's ``JobEnvironment``."""
    return {
        "RANK": str(place.global_rank),
        "WORLD_SIZE": str(place.num_tasks),
        "LOCAL_RANK": str(place.local_rank),
        "LOCAL_WORLD_SIZE": str(place.num_tasks // place.num_nodes),
    }


def _plain(code: int) -> int:
    """The exit code of a worker that was stopped: perhaps before it could listen."""
    return code if code >= 0 else ExitCode.INTERRUPTED


def _job() -> str:
    """The job's id, of an array with the task's number: what ``scontrol requeue`` takes."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    return f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]


def _read(path: Path) -> dict[str, Any]:
    """A small record of JSON; empty where there is none, or a dead node has cut it short."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def _step(folder: Path) -> int:
    """The last step that training has told of; 0 where it has told of none."""
    found = _read(folder / PROGRESS)
    return int(found["done"]) if found.get("unit") == "iterations" else 0


def _exit_with(code: int) -> None:
    """Let an error that ends this process end it with a code of our own: Python's is always 1."""

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        sys.__excepthook__(kind, error, trace)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    sys.excepthook = hook
