"""The state of a run on disk: who is at work, what is finished, and whether it is the same work.

A stage's folder holds ``stage.yaml`` (the resolved stage), ``state.json`` (how it went), ``.lock``
(held while a worker is at it), ``metrics.jsonl``, ``logs/``, ``work/`` and at last ``artifact/``.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel

from toolkit.artifacts import MANIFEST, now, sha256, write_json, write_text
from toolkit.errors import BusyError, ToolkitError
from toolkit.stage import Operational

Status = Literal["pending", "running", "complete", "failed", "interrupted"]
STAGE_FILE = "stage.yaml"
STATE_FILE = "state.json"
LOCK_FILE = ".lock"
PREFLIGHT = "preflight"
UNFIT = "unfit"
SAMPLE = "sample"
"""The type of an input that is embedded sample data: it has a fingerprint, but no folder."""
REMOTE = "remote"
"""The type of an input that a server has: nothing but its name is known before it is read."""
LOCK_PATIENCE = 1.0
"""Seconds to try for a lock: whoever looks at a run's state holds it for a moment, too."""


@dataclass
class StageState:
    """What ``state.json`` holds."""

    status: Status = "pending"
    fingerprint: str = ""
    attempts: list[dict[str, Any]] = field(default_factory=list)
    """One entry a start: started, ended, status, host, pid, world_size."""
    versions: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    """Working time over all attempts that ended."""
    inputs: dict[str, str] = field(default_factory=dict)
    """By reference: the SHA-256 of the manifest of each input as the last attempt found it."""
    error: dict[str, Any] | None = None
    """Of the last attempt: message, where, hint, traceback (the log's path)."""
    unfit_nodes: list[dict[str, Any]] = field(default_factory=list)
    """What preflights found of nodes, oldest first: node, reason, time, job."""


@dataclass(frozen=True)
class StageFile:
    """What ``stage.yaml`` holds: all that a worker needs to know."""

    stage: str
    kind: str
    fingerprint: str
    seed: int
    config: dict[str, Any]
    """Resolved: every default filled in, paths absolute."""
    inputs: dict[str, dict[str, str]]
    """By reference: folder (relative to the stage's folder inside one run), type, fingerprint."""
    tracking: dict[str, Any] = field(default_factory=dict)
    """Where its metrics go (``tracking.config.Tracking``); empty: to no other place. Never part of
    the fingerprint."""

    def write(self, folder: Path) -> None:
        """Write it into a stage's folder."""
        text = yaml.safe_dump(asdict(self), sort_keys=False, allow_unicode=True)
        write_text(folder / STAGE_FILE, "# The resolved stage: written by toolkit.\n" + text)


def read_stage_file(folder: Path) -> StageFile | None:
    """The resolved stage of a folder, or None where there is none yet.

    Raises:
        ToolkitError: the file is there and can't be read.
    """
    path = folder / STAGE_FILE
    if not path.exists():
        return None
    try:
        return StageFile(**yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, TypeError, ValueError) as error:
        hint = "move the folder aside with --fresh, and run the stage again"
        raise ToolkitError(f"not a readable stage file: {error}", where=str(path), hint=hint) from (
            error
        )


def read_state(folder: Path) -> StageState:
    """The state of a stage's folder; ``pending`` where nothing has been written.

    A state that says ``running`` while nobody holds the lock is a worker that died without a word
    (SIGKILL, out of memory, a lost node): it is reported as ``failed``.
    """
    path = folder / STATE_FILE
    state = StageState()
    if path.exists():
        try:
            state = StageState(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ToolkitError(f"not a readable state file: {error}", where=str(path)) from error
    state.unfit_nodes = unfit_nodes(folder) or state.unfit_nodes
    if (folder / "artifact" / MANIFEST).is_file():
        state.status, state.error = "complete", None
    elif state.status == "running" and not is_locked(folder):
        state.status = "failed"
        state.error = state.error or {
            "message": "the worker died without a word (SIGKILL, out of memory, or a lost node)",
            "hint": "run the same command again: it goes on from what was saved",
        }
    return state


def unfit_nodes(folder: Path) -> list[dict[str, Any]]:
    """Every node that preflights of a stage have named, oldest first: node, reason, time, job.

    From the files themselves (see ``toolkit.preflight.record``): where no rank's Python started, a
    script without Python has written one, and nobody a state.
    """
    found = []
    for path in (folder / PREFLIGHT).glob(f"*/{UNFIT}"):
        when = datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")
        for line in path.read_text(encoding="utf-8").splitlines():
            node, _, reason = line.partition("\t")
            job = path.parent.name.partition("-")[0]
            found.append({"node": node, "reason": reason, "time": when, "job": job})
    return sorted(found, key=lambda entry: (entry["time"], entry["node"]))


def input_digests(folder: Path, file: StageFile) -> dict[str, str]:
    """The SHA-256 of the manifest of each of a stage's inputs that is a finished artifact now."""
    manifests = {r: folder / i["folder"] / MANIFEST for r, i in file.inputs.items() if i["folder"]}
    return {r: sha256(path) for r, path in manifests.items() if path.is_file()}


def made_again(state: StageState, now: Mapping[str, str]) -> list[str]:
    """The inputs that are not the ones a stage began with: same settings, other results.

    Two makings of one artifact may differ in their bits: by the layout, the machine, or the
    libraries' versions.
    """
    return [r for r, digest in now.items() if state.inputs.get(r, digest) != digest]


def write_state(folder: Path, state: StageState) -> None:
    """Write ``state.json`` atomically."""
    write_json(folder / STATE_FILE, asdict(state))


@contextmanager
def locked(folder: Path, what: str, patience: float = LOCK_PATIENCE) -> Iterator[None]:
    """Hold a folder's lock (``flock`` on ``.lock``); the kernel frees it when the process dies.

    Args:
        folder: of a run or a stage.
        what: for the message: ``run`` or ``stage``.
        patience: seconds to try for it.

    Raises:
        BusyError: another process holds it; the message names the process and its host.
        ToolkitError: the folder can't be written.
    """
    path = folder / LOCK_FILE
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ToolkitError(f"can't write in the folder: {error.strerror}", where=str(folder)) from (
            error
        )
    try:
        try:
            _flock(descriptor, patience)
        except BlockingIOError as error:
            owner = path.read_text(encoding="utf-8", errors="replace").strip() or "unknown"
            message = f"this {what} is in use by another process ({owner})"
            hint = "wait for it to end, or stop it; a dead process holds no lock"
            raise BusyError(message, where=str(folder), hint=hint) from error
        os.ftruncate(descriptor, 0)
        owner = f"pid {os.getpid()} on {socket.gethostname()} since {now()}\n"
        os.write(descriptor, owner.encode())
        yield
    finally:
        os.close(descriptor)


def _flock(descriptor: int, patience: float) -> None:
    deadline = time.monotonic() + patience
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.05)


def is_locked(folder: Path) -> bool:
    """Whether some process holds the folder's lock."""
    try:
        descriptor = os.open(folder / LOCK_FILE, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def operational(config: BaseModel) -> set[str]:
    """The dotted names of the settings marked ``Operational``: they shape nothing that is made."""
    found: set[str] = set()
    for name, info in type(config).model_fields.items():
        value = getattr(config, name)
        if any(isinstance(mark, Operational) for mark in info.metadata):
            found.add(name)
        elif isinstance(value, BaseModel):
            found |= {f"{name}.{inner}" for inner in operational(value)}
    return found


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping with dotted keys; lists stay values."""
    if not isinstance(value, Mapping) or not value:
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    return found


def essential(
    config: Mapping[str, Any], seed: int, inputs: Mapping[str, str], left_out: set[str]
) -> dict[str, Any]:
    """What a stage makes depends on this: settings, seed, and the inputs' fingerprints."""
    settings = {
        key: value
        for key, value in flatten(config).items()
        if not any(key == name or key.startswith(name + ".") for name in left_out)
    }
    return settings | {"seed": seed} | {f"inputs.{k}": v for k, v in sorted(inputs.items())}


def fingerprint(config: BaseModel, seed: int, inputs: Mapping[str, str]) -> str:
    """A hash (SHA-256, hex) of what a stage makes; see ``essential``."""
    record = essential(config.model_dump(mode="json"), seed, inputs, operational(config))
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def changed_keys(old: StageFile, new: StageFile, left_out: set[str]) -> list[str]:
    """Which essential settings differ between two resolved stages: ``lr: 0.001 -> 0.002``."""
    before, after = (
        essential(f.config, f.seed, {k: i["fingerprint"] for k, i in f.inputs.items()}, left_out)
        for f in (old, new)
    )
    return [
        f"{key}: {_short(before.get(key, '(absent)'))} -> {_short(after.get(key, '(absent)'))}"
        for key in dict.fromkeys([*before, *after])
        if before.get(key, "(absent)") != after.get(key, "(absent)")
    ]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:12] + "..."
