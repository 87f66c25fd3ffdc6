"""What every job runs: ``python -m toolkit.worker STAGE_DIR``, once per rank.

It reads ``stage.yaml``, runs the stage's function, and returns an exit code (``ExitCode``). Ranks
come from the environment (RANK, WORLD_SIZE, LOCAL_RANK), as torchrun and Slurm's templates set it;
TOOLKIT_PHASE names the one phase of a sharded stage to work on.
Rank 0 holds the stage's lock and writes ``state.json``; a rank that fails leaves its reason in
``errors/rank-N.json``.
"""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import signal
import socket
import sys
import time
import warnings
from contextlib import ExitStack
from pathlib import Path

from toolkit.artifacts import now
from toolkit.attempt import ERRORS, Outcome, attempt, record_error, record_of
from toolkit.context import WATCHDOG, Input, StageContext, StopRequest, versions
from toolkit.errors import STOPPED, ExitCode, ToolkitError
from toolkit.pipeline.registry import stage_kinds
from toolkit.pipeline.state import (
    LOCK_PATIENCE,
    REMOTE,
    SAMPLE,
    StageFile,
    StageState,
    input_digests,
    locked,
    made_again,
    read_stage_file,
    read_state,
    write_state,
)
from toolkit.pipeline.track import start_senders
from toolkit.stage import FINISH, StageConfig, StageKind
from toolkit.watchdog import Watchdog

logger = logging.getLogger("toolkit.worker")
DIES_WITH_PARENT = "TOOLKIT_DIES_WITH_PARENT"
PHASE = "TOOLKIT_PHASE"
"""In the environment: the one phase of a sharded stage to work on."""
QUIET_STOP = "TOOLKIT_QUIET_STOP"
"""In the environment: a rank that was stopped ends with 0, lest srun or torchrun take the first of
them for a crash and kill the others; whoever started them looks for the artifact."""
LOCK_SECONDS = "TOOLKIT_LOCK_SECONDS"
"""In the environment: how long to wait for the stage's lock. A job that is started again may be
ahead of the end of the one before, or of the word of it: a file server keeps the lock of a node
that was lost for a lease's length (of NFS 4: 90 s)."""
PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    """Run one rank of one stage; returns the process's exit code."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m toolkit.worker STAGE_DIR\n")
        return ExitCode.USER_ERROR
    stop = StopRequest()
    stop.install()
    _die_with_parent()
    _set_up_log()
    folder = Path(arguments[0]).resolve()
    try:
        code = run_rank(folder, stop)
        quiet = QUIET_STOP in os.environ and code in STOPPED
        return ExitCode.OK if quiet else code
    except ToolkitError as error:
        logger.error("%s", error)
        rank = os.environ.get("RANK", "0")
        if rank.isdigit() and folder.is_dir():
            record_error(folder, int(rank), Outcome(error.exit_code, "failed", record_of(error)))
        return error.exit_code


def run_rank(folder: Path, stop: StopRequest) -> ExitCode:
    """Run this process's rank of the stage in ``folder``."""
    file = read_stage_file(folder)
    if file is None:
        raise ToolkitError("no stage.yaml here", where=str(folder))
    kind = stage_kinds()[file.kind]
    config = kind.config.model_validate(file.config)
    context = make_context(folder, file, stop)
    _check_phase(kind, config, context)
    with ExitStack() as stack:
        if context.rank == 0:
            patience = float(os.environ.get(LOCK_SECONDS, LOCK_PATIENCE))
            stack.enter_context(locked(folder, "stage", patience))
            state = _begin(folder, file, context)
            followed = context.phase in (None, FINISH)
            senders = start_senders(folder, file, state.versions) if followed else None
        started = time.monotonic()
        outcome = attempt(kind.load, config, context)
        record_error(folder, context.rank, outcome)
        if context.rank == 0:
            _end(context, state, outcome, time.monotonic() - started)
            if senders is not None:
                senders.end(outcome.status, hurry=lambda: stop.requested)
    return outcome.code


def _check_phase(kind: StageKind, config: StageConfig, context: StageContext) -> None:
    """Refuse a phase that the stage hasn't, and ranks that would all finish it at once.

    Raises:
        ToolkitError: what is set, and what may be.
    """
    if kind.spread != "shards":
        return
    known = (*config.phases(), FINISH)
    if context.phase is not None and context.phase not in known:
        raise ToolkitError(
            f"{PHASE} is {context.phase!r}; the phases of {kind.name} are {', '.join(known)}",
            where=str(context.folder),
        )
    if context.world_size > 1 and context.phase in (None, FINISH):
        raise ToolkitError(
            f"{context.world_size} ranks on {'every phase' if context.phase is None else FINISH}:"
            f" the last phase of {kind.name} is for one rank alone",
            where=str(context.folder),
            hint=f"set {PHASE} for each job: {', '.join(config.phases())}; then {FINISH}, with"
            " WORLD_SIZE=1",
        )


def make_context(folder: Path, file: StageFile, stop: StopRequest) -> StageContext:
    """The context of this process's rank, from ``stage.yaml`` and the environment.

    Raises:
        ToolkitError: the environment's rank is none of its world's.
    """
    rank, world_size = _number("RANK", 0), _number("WORLD_SIZE", 1)
    if rank >= world_size:
        raise ToolkitError(
            f"RANK is {rank}, but the ranks of WORLD_SIZE {world_size} are 0 to {world_size - 1}",
            where=str(folder),
        )
    inputs = {
        reference: Input(reference, (folder / i["folder"]).resolve(), i["type"], i["fingerprint"])
        for reference, i in file.inputs.items()
        if i["type"] not in (SAMPLE, REMOTE)
    }
    return StageContext(
        stage=file.stage,
        kind=file.kind,
        folder=folder,
        fingerprint=file.fingerprint,
        inputs=inputs,
        seed=file.seed,
        rank=rank,
        world_size=world_size,
        local_rank=_number("LOCAL_RANK", 0),
        device=detect_device(),
        stop=stop,
        phase=os.environ.get(PHASE),
        watchdog=_watchdog(folder, rank),
    )


def _watchdog(folder: Path, rank: int) -> Watchdog | None:
    """The watchdog that the environment asks for; it leaves this rank's reason in ``errors/``."""
    seconds = os.environ.get(WATCHDOG)
    if not seconds:
        return None

    def report(message: str) -> None:
        hint = (
            f"the stacks of all its threads are in the log of rank {rank}; where a step, a save, or"
            " a batch of an evaluation takes longer and is well: watchdog_seconds of the profile"
        )
        record = {"message": message, "where": None, "hint": hint}
        record_error(folder, rank, Outcome(ExitCode.STAGE_FAILED, "failed", record))

    return Watchdog(float(seconds), report)


def _number(name: str, default: int) -> int:
    """An environment variable that counts, from 0 on."""
    text = os.environ.get(name, str(default))
    if not (text.isascii() and text.isdigit()):
        raise ToolkitError(f"{name} must be a whole number from 0 on; got {text!r}")
    return int(text)


def detect_device() -> str:
    """``cuda`` where this process can use an NVIDIA GPU; ``TOOLKIT_DEVICE=cpu`` forbids it."""
    asked = os.environ.get("TOOLKIT_DEVICE")
    if asked:
        return asked
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        return "cpu"  # without a device file there is no need to load torch to ask
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _begin(folder: Path, file: StageFile, context: StageContext) -> StageState:
    old = read_state(folder)
    state = StageState(
        status="running",
        fingerprint=file.fingerprint,
        attempts=old.attempts,
        versions=versions(),
        seconds=old.seconds,
        inputs=input_digests(folder, file),
        unfit_nodes=old.unfit_nodes,
    )
    again = made_again(old, state.inputs)
    if again:
        raise ToolkitError(
            f"the input {again[0]} was made again since this stage began",
            where=str(folder),
            hint="what is begun follows from the old one: --fresh begins the stage anew",
        )
    for before in state.attempts:
        before["status"] = "failed" if before["status"] == "running" else before["status"]
    state.attempts.append(
        {
            "started": now(),
            "status": "running",
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "world_size": context.world_size,
            "device": context.device,
            **({"phase": context.phase} if context.phase else {}),
        }
    )
    write_state(folder, state)
    return state


def _end(context: StageContext, state: StageState, outcome: Outcome, seconds: float) -> None:
    folder = context.folder
    to_come = outcome.status == "complete" and context.phase not in (None, FINISH)
    state.status = "pending" if to_come else outcome.status
    state.error = outcome.error
    state.seconds += seconds
    if outcome.status == "complete" and not to_come:
        shutil.rmtree(folder / ERRORS, ignore_errors=True)
    state.attempts[-1] |= {"ended": now(), "status": outcome.status, "seconds": seconds}
    try:
        write_state(folder, state)
    except OSError as error:
        # A full disk must not hide the first error, which is in the log already.
        logger.error("can't write %s: %s", folder / "state.json", error.strerror)


def _set_up_log() -> None:
    """One format for our lines and for libraries' warnings, without what no user can act on."""
    logging.basicConfig(
        level=logging.INFO,
        format=f"%(asctime)s [rank {os.environ.get('RANK', '0')}] %(levelname)s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stdout,
    )
    logging.getLogger("megatron").setLevel(logging.WARNING)
    logging.captureWarnings(True)
    for category in (DeprecationWarning, FutureWarning, PendingDeprecationWarning):
        warnings.simplefilter("ignore", category)
    # Said by every module of megatron-core; `toolkit doctor` says it once, and what to do.
    warnings.filterwarnings("ignore", message=".*(Apex|Transformer Engine).*not installed")


def _die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the local launcher dies, so that no worker is orphaned."""
    parent = os.environ.get(DIES_WITH_PARENT)
    if parent is None:
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):  # it died before we asked
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
