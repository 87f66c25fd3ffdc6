"""Run in a process of its own: imports what may crash, and prints what it found as JSON.

``python -m toolkit.doctor.probe torch`` describes torch and the GPUs;
``python -m toolkit.doctor.probe imports NAME...`` tries to import modules.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import sys
import warnings
from collections.abc import Sequence
from typing import Any


def describe_torch() -> dict[str, Any]:
    """The fields of ``facts.Torch``."""
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
        gpus = [_describe_gpu(index) for index in range(torch.cuda.device_count() * available)]
    built = torch.version.cuda or ""
    nccl = torch.cuda.nccl.version() if torch.distributed.is_nccl_available() else ()
    return {
        "version": torch.__version__,
        "cuda": built,
        "driver": driver_version(),
        "nccl": ".".join(map(str, nccl)),
        "gloo": torch.distributed.is_gloo_available(),
        "gpus": gpus,
        "architectures": torch.cuda.get_arch_list(),
        "complaints": [str(w.message).splitlines()[0] for w in caught],
    }


def driver_version() -> int:
    """The newest CUDA that the driver supports (13010 for 13.1), by its own API; 0 without one."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    version = ctypes.c_int(0)
    return version.value if library.cuDriverGetVersion(ctypes.byref(version)) == 0 else 0


def _describe_gpu(index: int) -> dict[str, Any]:
    import torch

    found = torch.cuda.get_device_properties(index)
    return {
        "name": found.name,
        "memory": found.total_memory,
        "capability": [found.major, found.minor],
    }


def try_imports(names: Sequence[str]) -> dict[str, str]:
    """Import each module: why it could not be, by name, or an empty string."""
    return {name: _try_import(name) for name in names}


def _try_import(name: str) -> str:
    try:
        importlib.import_module(name)
    except Exception as error:  # noqa: BLE001 - a broken package may raise anything, and we say what
        said = str(error).splitlines() or [""]
        return f"{type(error).__name__}: {said[0]}"
    return ""


def main(subject: str, *names: str) -> None:
    """Print one line of JSON."""
    found = describe_torch() if subject == "torch" else try_imports(names)
    print(json.dumps(found))  # noqa: T201 - this is its interface


if __name__ == "__main__":
    main(*sys.argv[1:])
