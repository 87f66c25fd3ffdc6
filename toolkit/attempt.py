"""One attempt at a stage by one rank: what came of it, and the record that it leaves."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.artifacts import MANIFEST, read_artifact, write_json
from toolkit.context import StageContext
from toolkit.errors import DISK_ERRORS, ExitCode, StageInterrupted, ToolkitError
from toolkit.stage import StageConfig
from toolkit.tracking.job import End

logger = logging.getLogger("toolkit.worker")
ERRORS = "errors"
"""The folder in a stage's folder where ranks that fail leave their reasons: ``rank-N.json``."""


@dataclass(frozen=True)
class Outcome:
    """How a worker ended."""

    code: ExitCode
    status: End
    error: dict[str, Any] | None = None


def attempt(load: Any, config: StageConfig, context: StageContext) -> Outcome:
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
        return Outcome(ExitCode.STAGE_FAILED, "failed", record_of(error))
    except Exception as error:  # noqa: BLE001 - the last resort: recorded whole, then reported
        number = disk_errno(error)
        return _crash(error) if number is None else _no_space(number, error, context.folder)
    finally:
        if context.watchdog is not None:
            context.watchdog.stop()
    return Outcome(ExitCode.OK, "complete")


def record_of(error: ToolkitError) -> dict[str, Any]:
    """An error that a user can act on, for ``errors/rank-N.json`` and ``state.json``.

    Its ``exit_code`` is the error's own: a mistake (2) is not mended by starting again.
    """
    return {
        "message": error.message,
        "where": error.where,
        "hint": error.hint,
        "exit_code": int(error.exit_code),
    }


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


def record_error(folder: Path, rank: int, outcome: Outcome) -> None:
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
