"""The one file that knows there is no GPU: lets megatron-core run on the CPU over gloo.

megatron-core (0.16 to 0.19) writes ``cuda`` where it means "my device". ``install`` turns each of
those places to the CPU; everything else in the toolkit asks for its device by name and needs none
of this. It is called once, at a worker's start, in CPU mode alone, and stays for the process.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
from megatron.core.distributed import torch_fully_sharded_data_parallel
from megatron.core.distributed.fsdp import mcore_fsdp_adapter
from megatron.core.distributed.fsdp.src.megatron_fsdp import megatron_fsdp
from megatron.core.models import backends
from megatron.core.models.gpt import gpt_layer_specs
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.tensor_parallel import random as mcore_random
from megatron.core.transformer import transformer_block
from megatron.core.transformer.moe import moe_utils, token_dispatcher
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.utils._device import _device_constructors

CPU = torch.device("cpu")


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


def _on_cpu(factory: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function that makes tensors, with ``device="cuda"`` read as the CPU."""

    @functools.wraps(factory)
    def make(*args: Any, **kwargs: Any) -> Tensor:
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = CPU
        kwargs.pop("pin_memory", None)  # for copies to a GPU, and refused where there is none
        return factory(*args, **kwargs)

    return make


_tensor_type = torch.Tensor.type


def _type(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
    answer = _tensor_type(tensor, *args, **kwargs)
    return answer.replace("torch.", "torch.cuda.", 1) if isinstance(answer, str) else answer


def _itself(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return tensor


def _current_device() -> torch.device:
    return CPU


def _nothing(*args: object, **kwargs: object) -> None:
    """Stand in for a call that waits for the GPU."""


class _NoStream:
    """Stands in for a CUDA stream and its events: work on a CPU is done when it is called."""

    def wait_stream(self, other: object) -> None:
        """Do nothing."""

    def record_event(self) -> _NoStream:
        """The event that this much is done, which it is."""
        return self

    def wait_event(self, event: object) -> None:
        """Do nothing."""

    def wait(self, stream: object = None) -> None:
        """Do nothing."""

    def synchronize(self) -> None:
        """Do nothing."""


_NO_STREAM = _NoStream()


def _no_stream(device: object = None) -> _NoStream:
    return _NO_STREAM


def _tokens_on_cpu(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor


class Norm:
    """torch's norms, also under sequence parallelism, which megatron-core's wrapper refuses.

    Each tensor-parallel rank then sees some of the tokens only; the mark on the weights has
    ``finalize_model_grads`` add up their gradients.
    """

    def __new__(
        cls, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: object
    ) -> Any:
        """Make a ``torch.nn.LayerNorm`` or ``RMSNorm`` over the last dimension."""
        rms = config.normalization == "RMSNorm"
        kind = torch.nn.RMSNorm if rms else torch.nn.LayerNorm
        norm = kind(hidden_size, eps=eps, dtype=config.params_dtype)
        for weight in norm.parameters():
            setattr(weight, "sequence_parallel", config.sequence_parallel)  # noqa: B010
        return norm


def _manual_seed(seed: int) -> None:
    torch.manual_seed(seed)


def _get_rng_state(device: object = None, clone: bool = False, graph_safe: bool = False) -> Tensor:
    return torch.get_rng_state()


def _set_rng_state(state: Tensor, device: object = None, graph_safe: bool = False) -> None:
    torch.set_rng_state(state)


class _TorchOnCpu(ModuleType):
    """torch, whose devices are all the CPU."""

    device = staticmethod(lambda name: CPU)

    def __getattr__(self, name: str) -> Any:
        """What torch has."""
        return getattr(torch, name)


class _CpuMesh:
    """Stands in for ``DeviceMesh`` where megatron-core makes one for GPUs."""

    @staticmethod
    def from_group(group: Any, device_type: str, **options: Any) -> DeviceMesh:
        """The mesh of these ranks' CPUs."""
        return DeviceMesh.from_group(group, CPU.type, **options)


_set_states = DistributedOptimizer._set_main_param_and_optimizer_states
_load_state_dict = DistributedOptimizer.load_state_dict


def _set_states_but_the_step(
    optimizer: DistributedOptimizer, weight: Tensor, tensors: dict[str, Tensor]
) -> None:
    own = optimizer._get_main_param_and_optimizer_states(weight)
    _set_states(optimizer, weight, {"step": own["step"], **tensors})


def _load_with_a_step_each(optimizer: DistributedOptimizer, state: dict[str, Any]) -> None:
    _load_state_dict(optimizer, state)
    for own in optimizer.optimizer.state.values():
        own["step"] = own["step"].clone()


FACTORIES = ("arange", "empty", "empty_like", "full", "ones", "ones_like", "tensor", "zeros")

REPLACEMENTS: tuple[tuple[Any, str, Any], ...] = (
    # The schedules, gradient clipping, the causal mask and the optimizer make small tensors with
    # device="cuda".
    *((torch, name, _on_cpu(getattr(torch, name))) for name in FACTORIES),
    # The tied embedding of the last pipeline stage is moved so.
    (torch.Tensor, "cuda", _itself),
    # The optimizers sort parameters by tensor.type(), and refuse all but "torch.cuda.FloatTensor".
    (torch.Tensor, "type", _type),
    # Given as the device of buffers by DDP, the pipeline's receives and the parallel layers.
    (torch.cuda, "current_device", _current_device),
    # Waited for around pipeline sends and by the checkpoint writer: a CPU has nothing pending.
    (torch.cuda, "synchronize", _nothing),
    # 0.19's DDP has reductions wait for it.
    (torch.cuda, "current_stream", _no_stream),
    # Dropout's random states are seeded on "the GPU".
    (torch.cuda, "manual_seed", _manual_seed),
    # Recomputation and checkpoints save and restore "the GPU's" random state.
    (torch.cuda, "get_rng_state", _get_rng_state),
    (mcore_random, "_get_cuda_rng_state", _get_rng_state),
    (mcore_random, "_set_cuda_rng_state", _set_rng_state),
    (mcore_random, "CudaRNGStatesTracker", CpuRNGStatesTracker),
    # Where apex and TransformerEngine are installed (NVIDIA's images), these are CUDA kernels.
    (backends, "LNImpl", Norm),
    (backends, "WrappedTorchNorm", Norm),
    (gpt_layer_specs, "LNImpl", Norm),
    (transformer_block, "LayerNormImpl", Norm),
    # 0.16.1 forgets to define it without TransformerEngine.
    (moe_utils, "te_general_gemm", None),
    # FSDP's ranks, as torch knows them.
    (torch_fully_sharded_data_parallel, "DeviceMesh", _CpuMesh),
    (mcore_fsdp_adapter, "DeviceMesh", _CpuMesh),
    # 0.16 asks for TransformerEngine's layers, and for the random states of GPUs.
    (mcore_fsdp_adapter, "TELinear", _NoStream),
    (mcore_fsdp_adapter.FullyShardedDataParallel, "sync_rng_states_across_tp_group", _nothing),
    # Megatron's FSDP compares its device with f"cuda:{current_device()}".
    (megatron_fsdp, "torch", _TorchOnCpu("torch")),
    (torch.cuda, "current_stream", _no_stream),
    # Tokens to experts: the sizes of the pieces are brought to the CPU on a stream of its own.
    (torch.cuda, "Stream", _no_stream),
    (torch.cuda, "stream", contextlib.nullcontext),
    (token_dispatcher, "maybe_move_tensor_to_cpu", _tokens_on_cpu),
    # Without TransformerEngine the optimizer is torch's AdamW, which has its steps in a tensor for
    # each weight. Loading looks for it among the sharded tensors, where it is not; and gives all
    # weights one tensor, which would then count the step of every one of them.
    (DistributedOptimizer, "_set_main_param_and_optimizer_states", _set_states_but_the_step),
    (DistributedOptimizer, "load_state_dict", _load_with_a_step_each),
)
"""What ``install`` replaces: (module or class, name, replacement)."""


def install() -> None:
    """Turn megatron-core to the CPU for the rest of this process; a second call does nothing."""
    if mcore_random.CudaRNGStatesTracker is CpuRNGStatesTracker:
        return
    # ``with torch.device("meta")`` knows the factories by identity, from a list made on first use:
    # made after this, it would miss the originals, and transformers would load models wrongly.
    _device_constructors()
    for module, name, replacement in REPLACEMENTS:
        setattr(module, name, replacement)
    # What megatron-core warns of at run time is how to make GPUs faster.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"megatron\.")
