"""What torch says of itself and of the GPUs, asked in a process of its own.

A broken driver can hang or kill the process that initialises CUDA, and importing torch takes
seconds: the diagnosis survives both.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

SECONDS = 120.0


@dataclass(frozen=True)
class GPU:
    """One GPU that torch sees."""

    name: str
    memory: int
    """In bytes."""
    capability: tuple[int, int]


@dataclass(frozen=True)
class Torch:
    """The torch of this environment."""

    installed: bool = False
    error: str = ""
    """Why it could not be asked; empty when all went well."""
    version: str = ""
    cuda: str = ""
    """The CUDA version that it was built for, such as ``13.0``; empty for a CPU build."""
    driver: int = 0
    """The newest CUDA that the driver supports, 13010 for 13.1; 0 where there is no driver."""
    nccl: str = ""
    gloo: bool = False
    gpus: tuple[GPU, ...] = ()
    architectures: tuple[str, ...] = ()
    """What its kernels were compiled for: ``sm_90``, ``compute_120``."""
    complaints: tuple[str, ...] = ()
    """Warnings that CUDA's initialisation raised."""


def torch_facts() -> Torch:
    """Ask torch, if it is installed."""
    if find_spec("torch") is None:
        return Torch()
    said, error = probe("torch")
    if said is None:
        return Torch(installed=True, error=error)
    said["gpus"] = tuple(GPU(g["name"], g["memory"], tuple(g["capability"])) for g in said["gpus"])
    for name in ("architectures", "complaints"):
        said[name] = tuple(said[name])
    return Torch(installed=True, **said)


def probe(subject: str, *names: str) -> tuple[Any, str]:
    """Run ``toolkit.doctor.probe`` in a new process: (what it said, "") or (None, why not)."""
    command = [sys.executable, "-m", "toolkit.doctor.probe", subject, *names]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return None, f"no answer within {SECONDS:g} s"
    lines = done.stdout.splitlines()
    if done.returncode == 0 and lines:
        return json.loads(lines[-1]), ""
    said = done.stderr.strip().splitlines()
    return None, said[-1] if said else f"ended with exit code {done.returncode}"
