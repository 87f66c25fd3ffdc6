"""What every job runs: ``python -m toolkit.worker STAGE_DIR``, once per rank.

It reads ``stage.yaml``, runs the stage's function, and returns an exit code (``ExitCode``). Ranks
come from the environment (RANK, WORLD_SIZE, LOCAL_RANK), as torchrun and Slurm's templates set it;
TOOLKIT_PHASE names the one phase of a sharded stage to work on.
Rank 0 holds the stage's lock and writes ``state.json``; a rank that fails leaves its reason in
``errors/rank-N.json``.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import re
import shutil
import signal
import socket
import sys
import time
import traceback
import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.artifacts import MANIFEST, now, read_artifact, write_json
from toolkit.context import WATCHDOG, Input, StageContext, StopRequest, versions
from toolkit.errors import DISK_ERRORS, STOPPED, ExitCode, StageInterrupted, ToolkitError
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
from toolkit.tracking.job import End
from toolkit.watchdog import Watchdog

logger = logging.getLogger("toolkit.worker")
ERRORS = "errors"
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


@dataclass(frozen=True)
class Outcome:
    """How a worker ended."""

    code: ExitCode
    status: End
    error: dict[str, Any] | None = None


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
        record = {"message": error.message, "where": error.where, "hint": error.hint}
        rank = os.environ.get("RANK", "0")
        if rank.isdigit() and folder.is_dir():
            _record_error(folder, int(rank), Outcome(error.exit_code, "failed", record))
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
        outcome = _attempt(kind.load, config, context)
        _record_error(folder, context.rank, outcome)
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
        _record_error(folder, rank, Outcome(ExitCode.STAGE_FAILED, "failed", record))

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
    for attempt in state.attempts:
        attempt["status"] = "failed" if attempt["status"] == "running" else attempt["status"]
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


def _attempt(load: Any, config: StageConfig, context: StageContext) -> Outcome:
    """Run the stage's function, and say how it ended."""
    try:
        with context.stop.heeded():
            _check_inputs(context)
            load()(config, context)
    except StageInterrupted as error:
        logger.warning("%s", error)
        code = ExitCode.SAVED_AND_STOPPED if error.saved else ExitCode.INTERRUPTED
        return Outcome(code, "interrupted", {"message": error.message})
    except KeyboardInterrupt:
        name = context.stop.signal.name if context.stop.signal else "SIGINT"
        logger.warning("interrupted by %s", name)
        return Outcome(ExitCode.INTERRUPTED, "interrupted", {"message": f"stopped by {name}"})
    except ToolkitError as error:
        logger.error("%s", error)
        record = {"message": error.message, "where": error.where, "hint": error.hint}
        return Outcome(ExitCode.STAGE_FAILED, "failed", record)
    except Exception as error:  # noqa: BLE001 - the last resort: recorded whole, then reported
        number = disk_errno(error)
        return _crash(error) if number is None else _no_space(number, error, context.folder)
    finally:
        if context.watchdog is not None:
            context.watchdog.stop()
    return Outcome(ExitCode.OK, "complete")


def _check_inputs(context: StageContext) -> None:
    """Refuse an input that was cut short or lost a file since it was made; sizes only."""
    if context.rank != 0:
        return
    for source in context.inputs.values():
        if (source.folder / MANIFEST).is_file():
            read_artifact(source.folder).verify(checksums=False)


RUST_ERRNO = re.compile(r"\(os error (\d+)\)")
TORCH_WRITE = "PytorchStreamWriter failed"


def disk_errno(error: BaseException | None) -> int | None:
    """The disk's error number behind an exception, if a disk that can't be written is behind it.

    Libraries in Rust (tokenizers, safetensors) and torch's writer hide it in their messages.
    """
    while error is not None:
        number = error.errno if isinstance(error, OSError) else None
        found = RUST_ERRNO.search(str(error))
        if number is None and found:
            number = int(found[1])
        if number is None and TORCH_WRITE in str(error):
            number = errno.ENOSPC
        if number in DISK_ERRORS:
            return number
        error = error.__cause__ or error.__context__
    return None


def _no_space(number: int, error: Exception, folder: Path) -> Outcome:
    free = shutil.disk_usage(folder).free / 2**20
    record = {
        "message": f"{os.strerror(number)}, with {free:,.0f} MiB free",
        "where": str(getattr(error, "filename", None) or folder),
        "hint": "make room and run the same command again: nothing half-made was published",
    }
    logger.error("%s: %s", record["where"], record["message"], exc_info=error)
    return Outcome(ExitCode.STAGE_FAILED, "failed", record)


def _crash(error: Exception) -> Outcome:
    text = traceback.format_exc()
    logger.error("%s", text)
    message = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    record = {"message": message, "hint": None, "where": None, "traceback": text}
    return Outcome(ExitCode.STAGE_FAILED, "failed", record)


def _record_error(folder: Path, rank: int, outcome: Outcome) -> None:
    """Leave this rank's reason, or take away the one that its last attempt left."""
    path = folder / ERRORS / f"rank-{rank}.json"
    try:
        if outcome.status == "complete":
            path.unlink(missing_ok=True)
        elif outcome.status == "failed" and outcome.error is not None:
            path.parent.mkdir(exist_ok=True)
            write_json(path, {"time": time.time(), "exit_code": int(outcome.code), **outcome.error})
    except OSError as error:
        logger.error("can't write the error of rank %d: %s", rank, error.strerror)


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
