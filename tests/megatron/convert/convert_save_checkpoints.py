"""Run on every rank: saves Megatron checkpoints with known weights at TP=2 x PP=2.

``convert_save_checkpoints.py JOBS.json``: a list of {folder, model, chunks, layout, vocab_size,
dtype}.
Each weight's values follow from its name in the checkpoint alone, so that they are the same at
every layout, norms and biases included (whose initial ones and zeros would hide a mix-up).

Heavy imports are inside: megatron-core's writer spawns a process that imports this file again.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any


def known_values(key: str, layer: tuple[int, ...], shape: tuple[int, ...]) -> Any:
    """All of a weight: matrices and biases around 0, norms around 1."""
    import torch

    digest = hashlib.sha256(f"{key}/{layer}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    norm = "norm" in key and key.endswith("weight")
    return torch.randn(shape, generator=generator) * 0.15 + (1.0 if norm else 0.0)


def fill(chunk: Any) -> None:
    """Give every weight of a part of a model its known values."""
    from toolkit.megatron.sharding import sharded_weights

    for shard in sharded_weights(chunk):
        ahead = shard.prepend_axis_num
        whole = known_values(shard.key, shard.global_offset[:ahead], shard.global_shape[ahead:])
        begins = shard.global_offset[ahead:]
        place = tuple(slice(b, b + n) for b, n in zip(begins, shard.local_shape, strict=True))
        shard.data.copy_(whole[place])


def save(job: dict[str, Any]) -> None:
    """Save this rank's part of one model, in one or more chunks (the interleaved schedule's)."""
    import torch
    from megatron.core import dist_checkpointing, parallel_state

    from toolkit.megatron.config import ModelConfig, ParallelConfig
    from toolkit.megatron.model import build_model
    from toolkit.megatron.sharding import sharding_metadata

    count = job["chunks"]
    parallel = ParallelConfig(
        tensor_model_parallel_size=2,
        pipeline_model_parallel_size=2,
        virtual_pipeline_model_parallel_size=count if count > 1 else None,
        pipeline_model_parallel_layout=job["layout"],
    )
    rank, state = parallel_state.get_pipeline_model_parallel_rank(), {}
    for number in range(count):
        chunk = build_model(
            ModelConfig(**job["model"]),
            parallel,
            vocab_size=job["vocab_size"],
            pre_process=(rank, number) == (0, 0),
            post_process=(rank, number) == (1, count - 1),
            vp_stage=number if count > 1 else None,
        )
        with torch.no_grad():
            fill(chunk)
        chunk.to(getattr(torch, job["dtype"]))
        state[f"model{number}"] = chunk.sharded_state_dict(metadata=sharding_metadata())
    dist_checkpointing.save(state, job["folder"])


def main() -> None:
    """Save them all, with one set of process groups."""
    from toolkit.megatron.config import ParallelConfig
    from toolkit.megatron.distributed import process_groups

    parallel = ParallelConfig(tensor_model_parallel_size=2, pipeline_model_parallel_size=2)
    with process_groups(parallel):
        for job in json.loads(Path(sys.argv[1]).read_text()):
            save(job)


if __name__ == "__main__":
    main()
