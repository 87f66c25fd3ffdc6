"""Where the files that ship beside the code are: configs, presets, templates."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def share(*names: str) -> Path:
    """A path under ``configs/``, ``slurm/`` or ``k8s/``: in the wheel, or in the checkout."""
    installed = _PACKAGE / "_share"
    return (installed if installed.is_dir() else _PACKAGE.parent).joinpath(*names)
