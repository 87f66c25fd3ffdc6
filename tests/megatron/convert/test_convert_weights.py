"""Safetensors files: one or many, whole, and the same bytes every time."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from toolkit.artifacts import sha256
from toolkit.megatron.convert.config import ExportConfig
from toolkit.megatron.convert.weights import write_weights


def named(count: int = 5) -> list[tuple[str, torch.Tensor]]:
    whole = torch.arange(count * 100, dtype=torch.float32).reshape(count, 10, 10)
    return [(f"layer.{number}", whole[number].t()) for number in range(count)]


def test_a_small_model_is_one_file(tmp_path: Path) -> None:
    """The tensors are views of one storage, not contiguous: both are nothing to the file."""
    assert write_weights(named(), tmp_path, torch.float32, 10**6) == 500
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    found = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in named())


def test_shards_stay_below_the_limit_and_the_index_names_them(tmp_path: Path) -> None:
    write_weights(named(), tmp_path, torch.float32, 1000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_parameters": 500, "total_size": 2000}
    shards = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert shards == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    for name, tensor in named():
        assert torch.equal(load_file(tmp_path / index["weight_map"][name])[name], tensor)
    assert len(list(tmp_path.iterdir())) == 4


def test_a_tensor_larger_than_the_limit_has_a_file_of_its_own(tmp_path: Path) -> None:
    write_weights(named(3), tmp_path, torch.float32, 10)
    assert len(list(tmp_path.glob("model-*-of-00003.safetensors"))) == 3


def test_the_data_type_is_changed_on_the_way(tmp_path: Path) -> None:
    write_weights([("a", torch.tensor([1.0, 1.00001]))], tmp_path, torch.bfloat16, 10**6)
    assert load_file(tmp_path / "model.safetensors")["a"].tolist() == [1.0, 1.0]
    assert load_file(tmp_path / "model.safetensors")["a"].dtype == torch.bfloat16


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        write_weights(named(), tmp_path / name, torch.float32, 10**6)
    first, second = (sha256(tmp_path / n / "model.safetensors") for n in ("first", "second"))
    assert first == second


@pytest.mark.parametrize(("text", "size"), [("5GB", 5 * 10**9), ("200MB", 2 * 10**8)])
def test_sizes_are_read_as_hugging_face_reads_them(text: str, size: int) -> None:
    assert ExportConfig(checkpoint="base", max_shard_size=text).max_shard_bytes() == size


@pytest.mark.parametrize("text", ["5", "5 GB", "0GB", "5GiB", "-1GB", ""])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="max_shard_size"):
        ExportConfig(checkpoint="base", max_shard_size=text)
