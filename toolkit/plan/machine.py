"""GPU types as profiles name them, and what they can do."""

from __future__ import annotations

import re
from importlib import metadata

from toolkit.plan.shape import Machine

CAPABILITIES: tuple[tuple[str, tuple[int, int]], ...] = (
    ("gb300", (10, 3)),
    ("b300", (10, 3)),
    ("gb200", (10, 0)),
    ("b200", (10, 0)),
    ("b100", (10, 0)),
    ("rtx_pro_6000", (12, 0)),
    ("5090", (12, 0)),
    ("gh200", (9, 0)),
    ("h200", (9, 0)),
    ("h100", (9, 0)),
    ("h800", (9, 0)),
    ("h20", (9, 0)),
    ("l40s", (8, 9)),
    ("l40", (8, 9)),
    ("l4", (8, 9)),
    ("6000_ada", (8, 9)),
    ("4090", (8, 9)),
    ("a100", (8, 0)),
    ("a800", (8, 0)),
    ("a30", (8, 0)),
    ("a10g", (8, 6)),
    ("a10", (8, 6)),
    ("a40", (8, 6)),
    ("a6000", (8, 6)),
    ("3090", (8, 6)),
    ("t4", (7, 5)),
    ("v100", (7, 0)),
)
"""Compute capabilities (developer.nvidia.com/cuda-gpus), by a part of the type; first match."""


def names_gpu(name: str, known: str) -> bool:
    """Whether a known type is a part of a name, whole: ``h100`` is none of ``h1000``."""
    return re.search(rf"{known}(?![0-9])", name) is not None


def capability_of(gpu_type: str | None) -> tuple[int, int] | None:
    """The compute capability of a GPU by its type in Slurm's gres; None where it is not known."""
    name = (gpu_type or "").lower().replace("-", "_").replace(" ", "_")
    return (
        next((found for part, found in CAPABILITIES if names_gpu(name, part)), None)
        if name
        else None
    )


def installed(package: str) -> str | None:
    """The version of a package in this environment, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def this_machine() -> Machine:
    """What ranks that are started here have, as far as it matters without a GPU."""
    return Machine(megatron_core=installed("megatron-core"))
