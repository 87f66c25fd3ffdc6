"""``python -m toolkit.preflight STAGE_DIR [SETTINGS]``: one rank of a preflight.

Its place comes from RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; SETTINGS is a JSON
object of the profile's ``preflight``, with ``gpus``, how many the job has on each node.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from toolkit.context import Stopped
from toolkit.errors import ExitCode, ToolkitError
from toolkit.preflight.config import Preflight
from toolkit.preflight.rank import Place, run_rank
from toolkit.preflight.record import attempt_folder

STOP_SIGNALS = (signal.SIGUSR1, signal.SIGTERM)


def main(arguments: list[str]) -> int:
    """Run one rank; returns the process's exit code."""
    if not 1 <= len(arguments) <= 2:
        sys.stderr.write("usage: python -m toolkit.preflight STAGE_DIR [SETTINGS]\n")
        return ExitCode.USER_ERROR
    for number in STOP_SIGNALS:
        signal.signal(number, _stop)
    _set_up_log()
    try:
        return _look(
            Path(arguments[0]).resolve(), json.loads(arguments[1] if arguments[1:] else "{}")
        )
    except ToolkitError as error:
        logging.getLogger("toolkit.preflight").error("%s", error)
        return error.exit_code
    except Stopped:
        return ExitCode.SAVED_AND_STOPPED
    finally:
        faulthandler.cancel_dump_traceback_later()


def _look(stage: Path, given: dict[str, Any]) -> ExitCode:
    gpus = int(given.pop("gpus", 0))
    gpus = 0 if os.environ.get("TOOLKIT_DEVICE") == "cpu" else gpus
    folder = attempt_folder(stage)
    folder.mkdir(parents=True, exist_ok=True)
    return run_rank(stage, folder, _place(gpus), Preflight.model_validate(given))


def _place(gpus: int) -> Place:
    environment = os.environ
    return Place(
        rank=int(environment.get("RANK", "0")),
        world_size=int(environment.get("WORLD_SIZE", "1")),
        local_rank=int(environment.get("LOCAL_RANK", "0")),
        node=environment.get("SLURMD_NODENAME") or socket.gethostname(),
        host=environment.get("MASTER_ADDR", "127.0.0.1"),
        port=int(environment.get("MASTER_PORT", "29500")),
        gpus=gpus,
    )


def _stop(number: int, frame: FrameType | None) -> None:
    """The job is told to stop, ahead of its time limit, say: nothing is lost."""
    for other in STOP_SIGNALS:
        signal.signal(other, signal.SIG_IGN)  # it ends by the first word
    raise Stopped(signal.Signals(number).name)


def _set_up_log() -> None:
    logging.basicConfig(
        level=logging.INFO,
        format=f"%(asctime)s [preflight {os.environ.get('RANK', '0')}] %(levelname)s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stdout,
    )


if __name__ == "__main__":
    ended = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(ended)  # at once: the libraries' own farewell can hang in a communicator that broke
