"""What a profile says of its GPUs, and how ``check --cluster`` holds a layout against it."""

from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from toolkit.errors import ConfigError
from toolkit.launch.check import load_for
from toolkit.launch.cluster import Cluster
from toolkit.launch.machine import cuda_of, machine_of
from toolkit.pipeline.source import Source

PIPELINE = """\
name: small
stages:
  base:
    kind: pretrain
    data: text
    train_iters: 100
    fp8: hybrid
    fp8_recipe: blockwise
    parallel: {tensor_model_parallel_size: 2}
    model: {num_layers: 4, hidden_size: 256, num_attention_heads: 8, max_position_embeddings: 128}
"""
IMAGE = {"runtime": "podman", "image": "registry/toolkit:1"}


def cluster(gpu_type: str | None = "h100", **settings: Any) -> Cluster:
    node = {"cpus": 64, "gpus": 8, "gpu_type": gpu_type}
    whole = {"scheduler": "slurm", "node": node, "time_limit": "4:00:00", **settings}
    return Cluster.model_validate(whole)


def mistakes(folder: Path, profile: Cluster) -> dict[str, str]:
    (folder / "text.bin").touch()
    (folder / "text.idx").touch()
    file = folder / "p.yaml"
    file.write_text(PIPELINE.replace("data: text", f"data: {folder / 'text'}"))
    try:
        load_for(file, (), profile, Source({}))
    except ConfigError as error:
        return {p.key.removeprefix("stages.base."): p.message for p in error.problems}
    return {}


def test_a_profile_without_versions_is_asked_for_its_gpu_alone() -> None:
    found = machine_of(cluster(container=IMAGE))
    assert (found.gpu, found.capability, found.gpus_per_node) == ("h100", (9, 0), 8)
    assert found.transformer_engine is found.cuda is found.torch is None


def test_without_a_container_the_packages_are_those_here(monkeypatch: pytest.MonkeyPatch) -> None:
    here = {"torch": "2.9.1+cu128", "megatron-core": "0.16.1"}

    def version(name: str) -> str:
        if name not in here:
            raise metadata.PackageNotFoundError(name)
        return here[name]

    monkeypatch.setattr(metadata, "version", version)
    found = machine_of(cluster())
    assert (found.torch, found.cuda, found.transformer_engine) == ("2.9.1+cu128", "12.8", None)
    assert found.megatron_core == "0.16.1"
    said = machine_of(cluster(software={"cuda": "12.9", "megatron_core": "0.19.2"}))
    assert (said.torch, said.cuda, said.megatron_core) == ("2.9.1+cu128", "12.9", "0.19.2")
    assert machine_of(cluster(container=IMAGE)).torch is None


@pytest.mark.parametrize(
    ("torch", "cuda"),
    [("2.9.1+cu128", "12.8"), ("2.13.0+cu130", "13.0"), ("2.13.0+cpu", None), (None, None),
     ("2.8.0a0+34c6371d24.nv25.8", None)],
)  # fmt: skip
def test_the_cuda_of_a_build(torch: str | None, cuda: str | None) -> None:
    assert cuda_of(torch) == cuda


@pytest.mark.parametrize("version", [2.10, 13])
def test_a_version_without_quotes_is_told_why_not(version: float) -> None:
    with pytest.raises(ValidationError, match=r"must be in quotes, such as '2.8.0'"):
        cluster(software={"transformer_engine": version})


def test_a_layout_is_held_against_the_gpus_and_versions(tmp_path: Path) -> None:
    old = cluster("a100", container=IMAGE, software={"transformer_engine": "2.2.0", "cuda": "12.8"})
    found = mistakes(tmp_path, old)
    assert set(found) == {"fp8", "fp8_recipe"}
    new = cluster("h100", container=IMAGE, software={"transformer_engine": "2.3.0", "cuda": "12.9"})
    assert mistakes(tmp_path, new) == {}
    stale = cluster("h100", container=IMAGE, software={"cuda": "12.8"})
    assert mistakes(tmp_path, stale) == {
        "fp8_recipe": "blockwise needs CUDA 12.9, and here is 12.8"
    }


def test_connections_that_the_profile_sets(tmp_path: Path) -> None:
    wrong = cluster("h100", container=IMAGE, environment={"CUDA_DEVICE_MAX_CONNECTIONS": 8})
    assert "needs CUDA_DEVICE_MAX_CONNECTIONS 1" in mistakes(tmp_path, wrong)["parallel"]
    right = cluster("h100", container=IMAGE, environment={"CUDA_DEVICE_MAX_CONNECTIONS": 1})
    assert mistakes(tmp_path, right) == {}


def test_a_version_is_a_version() -> None:
    with pytest.raises(ValueError, match="must be a version in quotes"):
        cluster(software={"cuda": "new"})
