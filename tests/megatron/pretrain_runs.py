"""Small pretraining stages for the tests: data, stage folders, and the ranks that run them."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from toolkit.artifacts import Artifact, publish, read_artifact, sha256
from toolkit.data.indexed import IndexedWriter
from toolkit.errors import ExitCode
from toolkit.megatron.config import PretrainConfig
from toolkit.pipeline.state import StageFile
from toolkit.tracking import read_metrics

VOCAB = 300
"""Not a multiple of 128: the embedding is padded."""
LLAMA: dict[str, Any] = {
    "num_layers": 4,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "ffn_hidden_size": 128,
    "max_position_embeddings": 32,
}
GPT2: dict[str, Any] = {
    "num_layers": 4,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "ffn_hidden_size": 128,
    "max_position_embeddings": 32,
    "position_embedding_type": "learned_absolute",
    "normalization": "LayerNorm",
    "gated_linear_unit": False,
    "activation_func": "gelu_tanh",
    "add_bias_linear": True,
    "untie_embeddings_and_output_weights": False,
}
QUICK: dict[str, Any] = {
    "lr_warmup_iters": 2,
    "micro_batch_size": 2,
    "global_batch_size": 8,
    "log_interval": 1,
    "eval_interval": 1000,
    "eval_iters": 2,
    "save_interval": 1000,
    "distributed_timeout_minutes": 1,
}
SEQUENCE = '''
import importlib, itertools, os, pathlib, resource, signal, sys, time
from toolkit.launch.local import free_port
from toolkit.worker import main

def meet(folder, meeting):
    """Rank 0 chooses the port at the last moment: one chosen long before may be taken by then."""
    place = pathlib.Path(folder, f"port-{meeting}")
    if os.environ["RANK"] == "0":
        place.with_suffix(".new").write_text(str(free_port()))
        place.with_suffix(".new").rename(place)
    while not place.exists():
        time.sleep(0.01)
    return place.read_text()

def die_before(module, name, call):
    function, calls = getattr(module, name), itertools.count(1)
    def mortal(*arguments, **options):
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    setattr(module, name, mortal)

if __name__ == "__main__":
    fault = os.environ.get("DIE_BEFORE")
    if fault and os.environ["RANK"] == "0":
        module, name, call = fault.split(":")
        die_before(importlib.import_module(module), name, int(call))
    if "FILE_LIMIT" in os.environ:
        limit = int(os.environ["FILE_LIMIT"])
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    codes = []
    for argument in sys.argv[1:]:
        folder, _, meeting = argument.rpartition("@")
        os.environ["MASTER_PORT"] = meet(folder, meeting)
        codes.append(main([folder]))
    sys.exit(max(codes))
'''
"""Runs one stage after another in one process: the imports cost more than the training.

``DIE_BEFORE=module:function:2`` has rank 0 kill itself before the second call of a function;
``FILE_LIMIT`` is the most bytes that a file may get, as on a full disk.
"""


def make_tokenizer(folder: Path, size: int = VOCAB) -> Path:
    """A tokenizer folder of ``size`` tokens; only its vocabulary matters here."""
    folder.mkdir(parents=True)
    vocab = {f"<{n}>": n for n in range(size)}
    content = {"model": {"type": "BPE", "vocab": vocab, "merges": []}, "added_tokens": []}
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def learnable(count: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Tokens of which each follows from the one before, with some noise."""
    random = np.random.default_rng(seed)
    noise = random.random(count) < 0.2
    stream = random.integers(0, VOCAB, count)
    for n in range(1, count):
        if not noise[n]:
            stream[n] = (stream[n - 1] * 7 + 3) % VOCAB
    return stream


def write_pair(
    prefix: Path, stream: np.ndarray[Any, Any], documents: int, vocab: int = VOCAB
) -> Path:
    """A ``.bin``/``.idx`` pair of ``documents`` documents of about the same length."""
    lengths = np.full(documents, len(stream) // documents, np.int64)
    lengths[-1] += len(stream) - lengths.sum()
    prefix.parent.mkdir(parents=True, exist_ok=True)
    with IndexedWriter(prefix, vocab) as writer:
        writer.write(stream, lengths)
    return prefix


def make_dataset(folder: Path, count: int = 40_000, documents: int = 200) -> Path:
    """A dataset artifact of learnable tokens."""
    built = folder.with_name(f"{folder.name}.building")
    write_pair(built / "text_document", learnable(count), documents)
    tokenizer = make_tokenizer(built / "tokenizer")
    info = {
        "prefixes": ["text_document"],
        "vocab_size": VOCAB,
        "tokenizer_sha256": sha256(tokenizer / "tokenizer.json"),
    }
    publish(
        built,
        folder,
        artifact_type="dataset",
        stage="corpus",
        kind="tokenize",
        fingerprint="test",
        info=info,
    )
    return folder


@dataclass
class Stage:
    """A pretrain stage's folder, ready to be run by as many ranks as its layout needs."""

    folder: Path
    config: PretrainConfig
    environment: dict[str, str] = field(default_factory=dict)

    def run(self) -> int:
        """Run all ranks to their end; the highest exit code."""
        return run_stages([self])

    @contextlib.contextmanager
    def started(self) -> Iterator["Ranks"]:
        """The running ranks; what is left of them at the end is killed."""
        ranks = Ranks([self])
        try:
            yield ranks
        finally:
            ranks.kill()

    def rows(self, name: str) -> list[float]:
        """The values of a metric, in order."""
        return [row[name] for row in read_metrics(self.folder) if name in row]

    def log(self) -> str:
        """What all ranks had to say."""
        return "\n".join(p.read_text() for p in sorted((self.folder / "logs").glob("*")))

    @property
    def checkpoints(self) -> Path:
        return self.folder / "work" / "checkpoints"

    @property
    def artifact(self) -> Artifact:
        return read_artifact(self.folder / "artifact")


class Ranks:
    """The processes that run stages of one world size, each in a session of its own."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        world_size = stages[0].config.world_size()
        assert all(s.config.world_size() == world_size for s in stages)
        self.stages = stages
        arguments = [f"{s.folder}@{uuid.uuid4()}" for s in stages]
        self.processes = [
            self._start(stages[0], rank, world_size, arguments) for rank in range(world_size)
        ]
        self.living = list(self.processes)

    def _start(
        self, stage: Stage, rank: int, world_size: int, arguments: Sequence[str]
    ) -> subprocess.Popen[bytes]:
        program = stage.folder.parent / "sequence.py"
        if not program.exists():  # the rank before this one may be reading it
            program.write_text(SEQUENCE, encoding="utf-8")
        logs = stage.folder / "logs"
        logs.mkdir(exist_ok=True)
        environment = {
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "OMP_NUM_THREADS": "1",
            "TOOLKIT_DEVICE": "cpu",
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
            **stage.environment,
        }
        with (logs / f"rank-{rank}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, str(program), *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def wait(self, seconds: float = 240) -> int:
        """Wait for all; a rank that fails must not leave the others hanging."""
        deadline = time.monotonic() + seconds
        return max(abs(p.wait(max(1.0, deadline - time.monotonic()))) for p in self.processes)

    def wait_until(self, happened: Callable[[], object], seconds: float = 120) -> None:
        """Poll until ``happened`` is true, while the ranks run."""
        deadline = time.monotonic() + seconds
        while not happened():
            codes = [p.poll() for p in self.processes]
            assert codes == [None] * len(codes), f"{codes}\n{self.stages[0].log()[-4000:]}"
            assert time.monotonic() < deadline, "nothing happened in time"
            time.sleep(0.005)

    def send(self, number: signal.Signals, ranks: Sequence[int] | None = None) -> None:
        """Send a signal to some ranks, by default to all."""
        for rank in range(len(self.processes)) if ranks is None else ranks:
            self.processes[rank].send_signal(number)

    def send_to_all(self, number: signal.Signals) -> None:
        """Send a signal to every rank and whatever it has started."""
        for process in self.processes:
            os.killpg(process.pid, number)

    def kill(self) -> None:
        """SIGKILL every rank and whatever it has started; once, for ids are used again."""
        living, self.living = self.living, []
        for process in living:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        for process in living:
            process.wait()


def run_stages(stages: Sequence[Stage]) -> int:
    """Run stages of one world size one after another, in the same processes."""
    ranks = Ranks(stages)
    try:
        return ranks.wait()
    finally:
        ranks.kill()


def make_stage(
    folder: Path, data: Path, model: Mapping[str, Any] = LLAMA, **settings: Any
) -> Stage:
    """A pretrain stage's folder; what is there already stays, as when a run is resumed."""
    raw = {"kind": "pretrain", "data": str(data), "model": dict(model), **QUICK, **settings}
    config = PretrainConfig.model_validate(raw)
    inputs = {}
    for reference in (config.data, config.tokenizer, config.load):
        if reference and (Path(reference) / "artifact.json").exists():
            found = read_artifact(Path(reference))
            inputs[reference] = {
                "folder": reference,
                "type": found.type,
                "fingerprint": found.fingerprint,
            }
    folder.mkdir(parents=True, exist_ok=True)
    record = StageFile("base", "pretrain", "test", 1234, config.model_dump(mode="json"), inputs)
    record.write(folder)
    return Stage(folder, config)


def layout(tensor: int = 1, pipeline: int = 1, virtual: int | None = None) -> dict[str, Any]:
    """The ``parallel`` setting."""
    return {
        "tensor_model_parallel_size": tensor,
        "pipeline_model_parallel_size": pipeline,
        "virtual_pipeline_model_parallel_size": virtual,
    }


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a distributed checkpoint: weights and the optimizer's state."""
    reader = dcp.FileSystemReader(str(folder))
    state = {
        name: torch.full(tuple(entry.size), float("nan"), dtype=entry.properties.dtype)
        for name, entry in reader.read_metadata().state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    dcp.load(state, storage_reader=reader, no_dist=True)
    return state


def assert_same_tensors(one: Path, other: Path) -> None:
    """Bit for bit the same names, weights and optimizer state."""
    first, second = read_tensors(one), read_tensors(other)
    assert first.keys() == second.keys()
    assert len(first) > 20
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def succeeded(code: int, stage: Stage) -> None:
    """Fail with the ranks' logs unless the run ended well."""
    assert code == ExitCode.OK, stage.log()[-6000:]
