"""Who a stage is to its sinks: one run id over all its restarts, and where its run can be seen."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from typing import Any

from toolkit.artifacts import write_json
from toolkit.errors import ToolkitError

FOLDER = "tracking"
IDENTITY = "run.json"


def run_id(folder: Path) -> str:
    """The run id of the stage in ``folder``: made once, and kept as long as the folder is.

    A requeue, a link of a chain, or a resubmission finds it; ``--fresh`` moves it away with the
    folder. Only the holder of the stage's lock may call this.

    Raises:
        ToolkitError: the file is there and holds no id.
    """
    path = folder / FOLDER / IDENTITY
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        write_json(path, {"id": uuid.uuid4().hex[:12]})
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["id"])
    except (ValueError, KeyError, TypeError) as error:
        hint = "remove it: the stage then goes on under a new run id"
        raise ToolkitError("holds no run id", where=str(path), hint=hint) from error


def remember(folder: Path, sink: str, **facts: Any) -> None:
    """Keep what a sink said of the run, such as its ``url``."""
    (folder / FOLDER).mkdir(exist_ok=True)
    write_json(folder / FOLDER / f"{sink}.json", facts)


def recall(folder: Path, sink: str) -> dict[str, Any]:
    """What was kept of a sink's run; empty where nothing was."""
    try:
        found = json.loads((folder / FOLDER / f"{sink}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def links(folder: Path) -> dict[str, str]:
    """Where the run of the stage in ``folder`` can be seen, by sink: its pages' addresses."""
    found = {sink: str(recall(folder, sink).get("url")) for sink in ("wandb", "mlflow")}
    return {sink: url for sink, url in found.items() if re.match("https?://", url)}


def where(folder: Path, sink: str) -> str:
    """Where a sink's run is, for people: its page's address, or its place in the stage's folder."""
    known = recall(folder, sink)
    return str(known.get("url") or known.get("offline") or known.get("store") or f"{sink}/")


@contextmanager
def alone(folder: Path, sink: str) -> Iterator[bool]:
    """Try to be the one process that sends this stage's rows to a sink; yields whether it is.

    The last attempt's process may be at it for some seconds after its stage was killed.
    """
    with (folder / FOLDER / f".{sink}.lock").open("w") as lock:
        try:
            flock(lock, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
