"""Checkpoints at TP=2 x PP=2, made once by four real ranks, and a small chat tokenizer."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from convert_shapes import SHAPES, VOCABULARY
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from toolkit.artifacts import publish
from toolkit.data.config import TrainTokenizerConfig
from toolkit.data.tokenizer_folder import write_tokenizer
from toolkit.megatron.config import ModelConfig, TrainedModel
from toolkit.megatron.layout import padded_vocab_size

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def chat_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer folder with 300 tokens, chatml: its end of a turn isn't its end of a document."""
    folder = tmp_path_factory.mktemp("tokenizer")
    config = TrainTokenizerConfig(
        kind="train-tokenizer", sources=["unused"], vocab_size=VOCABULARY, chat_template="chatml"
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=config.special_tokens(),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = "the quick brown fox jumps over the lazy dog while the other foxes look on and wonder "
    tokenizer.train_from_iterator([text * 20], trainer)
    write_tokenizer(folder, tokenizer, config)
    assert tokenizer.get_vocab_size() == VOCABULARY
    return folder


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory, chat_tokenizer: Path) -> Path:
    """A folder with one checkpoint artifact for every name in ``SHAPES``."""
    root = tmp_path_factory.mktemp("checkpoints")
    jobs = []
    for name, shape in SHAPES.items():
        folder = root / f"{name}.building"
        shutil.copytree(chat_tokenizer, folder / "tokenizer")
        (folder / "iter_0000007").mkdir()
        (folder / "latest_checkpointed_iteration.txt").write_text("7")
        model = ModelConfig(**shape)
        padded = padded_vocab_size(VOCABULARY, model.make_vocab_size_divisible_by, 2)
        described = TrainedModel.of(model, VOCABULARY, padded)
        (folder / "model.json").write_text(described.model_dump_json())
        jobs.append(
            {
                "folder": str(folder / "iter_0000007"),
                "model": shape,
                "chunks": 2 if name == "interleaved" else 1,
                "layout": "Et*3|t,L" if name == "gpt2-untied" else None,
                "vocab_size": VOCABULARY,
                "dtype": "bfloat16" if name == "bf16" else "float32",
            }
        )
    (root / "jobs.json").write_text(json.dumps(jobs))
    _on_four_ranks("convert_save_checkpoints.py", root / "jobs.json")
    for name in SHAPES:
        publish(
            root / f"{name}.building",
            root / name,
            artifact_type="checkpoint",
            stage=name,
            kind="pretrain",
            fingerprint=f"test-{name}",
        )
    return root


def _on_four_ranks(script: str, argument: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    logs = [argument.with_name(f"rank{rank}.log") for rank in range(4)]
    ranks = [
        subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name(script)), str(argument)],
            env={**os.environ, **shared, "RANK": str(rank), "PYTHONPATH": str(ROOT)},
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
        )
        for rank, log in enumerate(logs)
    ]
    try:
        codes = [rank.wait(timeout=400) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert codes == [0] * 4, "\n".join(log.read_text() for log in logs)
