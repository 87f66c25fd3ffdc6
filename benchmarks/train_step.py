"""Our training step against a bare megatron-core loop: same model, same data, one run.

    python benchmarks/train_step.py [--ranks 2] [--preset llama-mini] [--blocks 12]

Blocks of steps of both loops alternate in the same processes, so that both see the same machine.
The bare loop is what megatron-core's own examples do: a data loader, the forward-backward schedule,
the optimizer and the learning rate, and nothing else. Ours besides agrees on loss and stop signals,
guards against bad values, logs every tenth step, and keeps progress.

Ends with 1 when the median of the blocks' ratios is over 1.05.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import multiprocessing
from torch.utils.data import DataLoader

from toolkit.context import StageContext
from toolkit.data.indexed import IndexedWriter
from toolkit.launch.local import free_port
from toolkit.megatron.config import PretrainConfig
from toolkit.megatron.corpus import Corpus
from toolkit.megatron.datasets import build_datasets
from toolkit.megatron.distributed import process_groups
from toolkit.megatron.layout import layout_of
from toolkit.megatron.loop import Loop
from toolkit.megatron.setup import Training, build_training
from toolkit.megatron.state import Progress

LIMIT = 1.05
STEPS = 5
"""Of one block."""
VOCAB = 4096
PRESETS = Path(__file__).resolve().parent.parent / "configs" / "models"


def bare_loop(training: Training, dataset: Any) -> Callable[[int], None]:
    """A loop that does nothing beyond megatron-core's calls."""
    config = training.config
    loader = iter(DataLoader(dataset, batch_size=config.micro_batch_size, drop_last=True))

    def forward_step(batches: Any, model: torch.nn.Module) -> Any:
        batch = next(batches)
        losses = model(batch["tokens"], batch["position_ids"], None, labels=batch["labels"])

        def loss(output: torch.Tensor) -> Any:
            mean = (output * batch["loss_mask"]).sum() / batch["loss_mask"].sum()
            return mean, {"loss": mean.detach()}

        return losses, loss

    def train(steps: int) -> None:
        for _ in range(steps):
            training.chunks[0].zero_grad_buffer()
            training.optimizer.zero_grad()
            training.forward_backward(
                forward_step_func=forward_step,
                data_iterator=loader,
                model=training.chunks[0],
                num_microbatches=training.layout.num_microbatches,
                seq_length=config.sequence,
                micro_batch_size=config.micro_batch_size,
                forward_only=False,
            )
            training.optimizer.step()
            training.scheduler.step(increment=config.global_batch_size)

    return train


def our_loop(loop: Loop) -> Callable[[int], None]:
    """The loop of the pretrain stage."""
    return lambda steps: loop.train_to(loop.progress.iteration + steps)


def timed(train: Callable[[int], None], steps: int) -> float:
    """Seconds per step."""
    started = time.perf_counter()
    train(steps)
    return (time.perf_counter() - started) / steps


def measure(rank: int, options: argparse.Namespace, folder: Path) -> None:
    """One rank's part; rank 0 writes the times of all blocks."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    blocks = options.blocks + 1
    config = PretrainConfig.model_validate(
        {
            "data": "",
            "model": yaml.safe_load((PRESETS / f"{options.preset}.yaml").read_text()),
            "parallel": {"tensor_model_parallel_size": options.ranks},
            "train_iters": 2 * blocks * STEPS,
            "eval_iters": 0,
            "save_interval": 10**9,
        }
    )
    corpus = Corpus((folder / "tokens",), VOCAB, folder)
    context = StageContext("bench", "pretrain", folder, "bench", rank=rank)
    with process_groups(config.parallel):
        layout = layout_of(config, options.ranks)
        training = build_training(config, layout, torch.device("cpu"), VOCAB, 1234)
        datasets = build_datasets(corpus, config, 1234, folder)
        bare = bare_loop(training, datasets.train)
        ours = our_loop(Loop(training, datasets, Progress(), folder / "checkpoints", context))
        times = [(timed(bare, STEPS), timed(ours, STEPS)) for _ in range(blocks)][1:]
    if rank == 0:
        np.save(folder / "times.npy", np.array(times))


def report(times: np.ndarray[Any, np.dtype[np.float64]]) -> int:
    """Print the table; the exit code."""
    ratio = statistics.median(times[:, 1] / times[:, 0])
    print(f"{'loop':<22}{'median s/step':>15}{'best s/step':>13}{'ratio':>9}")
    for name, column in (("bare megatron-core", times[:, 0]), ("toolkit pretrain", times[:, 1])):
        shown = "1.000" if name.startswith("bare") else f"{ratio:.3f}"
        print(f"{name:<22}{np.median(column):>15.4f}{column.min():>13.4f}{shown:>9}")
    print(f"median over {len(times)} pairs of blocks of {STEPS} steps; at most {LIMIT} is asked")
    return int(ratio > LIMIT)


def main() -> int:
    """Make data, start the ranks, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--ranks", type=int, default=1, help="tensor-parallel ranks")
    parser.add_argument("--preset", default="llama-mini", help="a file of configs/models")
    parser.add_argument("--blocks", type=int, default=12, help="pairs of blocks")
    options = parser.parse_args()
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": str(options.ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stream = np.random.default_rng(0).integers(0, VOCAB, 400_000)
        with IndexedWriter(folder / "tokens", VOCAB) as writer:
            writer.write(stream, np.full(400, 1000, np.int64))
        multiprocessing.spawn(measure, (options, folder), nprocs=options.ranks)
        return report(np.load(folder / "times.npy"))


if __name__ == "__main__":
    sys.exit(main())
