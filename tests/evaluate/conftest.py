"""A tokenizer, a model, and ways to write them and data to disk."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import make_model, make_tokenizer
from transformers import LlamaForCausalLM


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="session")
def model(tokenizer) -> LlamaForCausalLM:
    return make_model(len(tokenizer))


@pytest.fixture
def save(tmp_path: Path, tokenizer) -> Callable[..., Path]:
    """``save("name", model)`` writes a model folder that Hugging Face opens."""

    def write(name: str, model: LlamaForCausalLM, its_tokenizer=tokenizer) -> Path:
        folder = tmp_path / "models" / name
        model.save_pretrained(folder)
        its_tokenizer.save_pretrained(folder)
        return folder

    return write


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """``write_rows("a.jsonl", {...}, {...})`` writes a file of records."""

    def write(name: str, *rows: dict) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write
