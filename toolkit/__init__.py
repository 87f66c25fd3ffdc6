"""From raw text to an aligned language model, from one YAML file.

From Python: ``toolkit.submit("configs/mini.yaml", "lab")`` (see ``toolkit.launch.handles``).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toolkit.launch.handles import handles, submit

__version__ = "0.1.0"
__all__ = ["__version__", "handles", "submit"]


def __getattr__(name: str) -> Any:
    """The Python API, loaded when it is asked for: every module of ours imports this one first."""
    if name in ("handles", "submit"):
        return getattr(import_module("toolkit.launch.handles"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
