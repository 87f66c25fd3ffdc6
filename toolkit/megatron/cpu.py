"""The one file that knows there is no GPU: lets megatron-core run on the CPU over gloo.

megatron-core (0.16 to 0.19) writes ``cuda`` where it means "my device". ``install`` turns each of
those places to the CPU; everything else in the toolkit asks for its device by name and needs none
of this. It is called once, at a worker's start, in CPU mode alone, and stays for the process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from megatron.core.tensor_parallel import random as mcore_random
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")


class CudaMeansCpu(TorchFunctionMode):
    """Reads ``cuda`` as ``cpu`` in every torch function called from Python.

    - ``torch.zeros(1, device="cuda")``: the schedules, gradient clipping and the optimizer make
      their scalars so.
    - ``tensor.cuda()``: the tied embedding of the last pipeline stage is moved so.
    - ``tensor.type()`` answers ``torch.cuda.FloatTensor``: the optimizers sort parameters by that
      string, and refuse any other.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call ``func`` with the device replaced."""
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            return func(*args).replace("torch.", "torch.cuda.", 1)
        if not kwargs:
            return func(*args)
        if "device" in kwargs and _is_cuda(kwargs["device"]):
            kwargs = {**kwargs, "device": CPU}
        return func(*args, **kwargs)


class CpuRNGStatesTracker(mcore_random.CudaRNGStatesTracker):  # type: ignore[misc]
    """Megatron's tracker of named random states, on the CPU's generator.

    The original seeds and forks the GPU's generator and warns when the CPU's has moved meanwhile,
    which here it must.
    """

    def add(self, name: str, seed: int) -> None:
        """Track a new state called ``name`` that starts at ``seed``."""
        if name in self.states_:
            raise ValueError(f"random state {name} is tracked already")
        self._is_initialized = True
        self.seeds_.add(seed)
        self.states_[name] = torch.Generator().manual_seed(seed).get_state()

    @contextlib.contextmanager
    def fork(self, name: str = mcore_random._MODEL_PARALLEL_RNG_TRACKER_NAME) -> Iterator[None]:
        """Draw from the state ``name`` within the block."""
        outside = torch.get_rng_state()
        torch.set_rng_state(self.states_[name])
        try:
            yield
        finally:
            self.states_[name] = torch.get_rng_state()
            torch.set_rng_state(outside)


def _is_cuda(device: Any) -> bool:
    """Whether a ``device`` argument names a GPU; integers do, by their index."""
    if isinstance(device, torch.device):
        return device.type == "cuda"
    return isinstance(device, int) or (isinstance(device, str) and device.startswith("cuda"))


def _current_device() -> torch.device:
    return CPU


def _nothing(*args: object, **kwargs: object) -> None:
    """Stand in for a call that waits for the GPU."""


def _manual_seed(seed: int) -> None:
    torch.manual_seed(seed)


def _get_rng_state(
    device: object = None, clone: bool = False, graph_safe: bool = False
) -> torch.Tensor:
    return torch.get_rng_state()


def _set_rng_state(state: torch.Tensor, device: object = None, graph_safe: bool = False) -> None:
    torch.set_rng_state(state)


REPLACEMENTS: tuple[tuple[Any, str, Any], ...] = (
    # Given as the device of buffers by DDP, the pipeline's receives and the parallel layers.
    (torch.cuda, "current_device", _current_device),
    # Waited for around pipeline sends and by the checkpoint writer: a CPU has nothing pending.
    (torch.cuda, "synchronize", _nothing),
    # Dropout's random states are seeded on "the GPU".
    (torch.cuda, "manual_seed", _manual_seed),
    # Recomputation and checkpoints save and restore "the GPU's" random state.
    (torch.cuda, "get_rng_state", _get_rng_state),
    (mcore_random, "_get_cuda_rng_state", _get_rng_state),
    (mcore_random, "_set_cuda_rng_state", _set_rng_state),
    (mcore_random, "CudaRNGStatesTracker", CpuRNGStatesTracker),
)
"""What ``install`` replaces: (module, name, replacement)."""


def install() -> None:
    """Turn megatron-core to the CPU for the rest of this process; a second call does nothing."""
    if mcore_random.CudaRNGStatesTracker is CpuRNGStatesTracker:
        return
    for module, name, replacement in REPLACEMENTS:
        setattr(module, name, replacement)
    mode: Any = CudaMeansCpu()
    mode.__enter__()
