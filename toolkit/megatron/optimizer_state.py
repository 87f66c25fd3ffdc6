"""The optimizer's part of a checkpoint, where experts are dealt out otherwise than when saved.

With expert parallelism megatron-core keeps the experts' weights in an optimizer of their own; with
expert_model_parallel_size 1 there is one for all. The tensors have the same names either way. What
stands beside them (the groups of weights with their steps) does not, and is brought in form here.
"""

from __future__ import annotations

from typing import Any

from megatron.core.optimizer import ChainedOptimizer

from toolkit.errors import ToolkitError

TENSORS = "param_state"
"""The key of what is tensors."""


def in_form(loaded: dict[Any, Any], optimizer: ChainedOptimizer) -> dict[Any, Any]:
    """``loaded`` as ``optimizer.load_state_dict`` takes it.

    Raises:
        ToolkitError: the state is not sharded (``use_distributed_optimizer: false``), and its form
            is not the saved one.
    """
    parts = optimizer.chained_optimizers
    apart = any(isinstance(key, int) and _besides(part) for key, part in loaded.items())
    if apart == (len(parts) > 1):
        return loaded
    first = loaded[0] if apart else loaded
    if "optimizer" not in first:
        raise ToolkitError(
            "the checkpoint was saved with another expert_model_parallel_size (1, or more than 1),"
            " and without the distributed optimizer",
            hint="go on with the same one, or save with use_distributed_optimizer: true",
        )
    if apart:
        return {k: v for k, v in loaded.items() if not isinstance(k, int)} | _besides(loaded[0])
    return {n: loaded[n] | _for_part(_besides(loaded), part) for n, part in enumerate(parts)}


def _besides(state: dict[Any, Any]) -> dict[Any, Any]:
    """One optimizer's state without tensors, and without other optimizers."""
    return {k: v for k, v in state.items() if isinstance(k, str) and k != TENSORS}


def _for_part(besides: dict[Any, Any], part: Any) -> dict[Any, Any]:
    """The groups of one optimizer for all, as those of the experts' or of the others' own."""
    of_experts = any(group["is_expert_parallel"] for group in part.param_groups)
    groups = besides["optimizer"]["param_groups"]
    own = [group | {"is_expert_parallel": of_experts} for group in groups]
    return besides | {"optimizer": besides["optimizer"] | {"param_groups": own}}
