"""TransformerEngine's user buffers, as its versions want them asked for; none is installed here."""

from __future__ import annotations

import contextlib
import enum
import inspect
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from pretrain_runs import LLAMA
from pydantic import ValidationError

from toolkit.errors import ToolkitError
from toolkit.megatron import train
from toolkit.megatron.config import PretrainConfig
from toolkit.megatron.transformer import transformer_config
from toolkit.megatron.userbuffers import buffer_arguments, user_buffers

GPU = torch.device("cuda", 0)


class Modes(enum.Enum):
    NONE = "none"
    FP8 = "fp8"


def until_2_7(shape: Any, tp_size: Any, use_fp8: Any = False, dtype: Any = torch.bfloat16,
              ub_cfgs: Any = None, bootstrap_backend: Any = None) -> None: ...  # fmt: skip


def from_2_8(shape: Any, tp_size: Any, use_fp8: Any = False, quantization_modes: Any = None,
             dtype: Any = torch.bfloat16, ub_cfgs: Any = None,
             bootstrap_backend: Any = None) -> None: ...  # fmt: skip


def config(parallel: dict[str, Any] | None = None, **settings: Any) -> PretrainConfig:
    overlapped = {"tensor_model_parallel_size": 2, "sequence_parallel": True}
    overlapped |= {"context_parallel_size": 2, "tp_comm_overlap": True, **(parallel or {})}
    whole = {"data": "corpus", "train_iters": 1, "model": LLAMA, "parallel": overlapped}
    return PretrainConfig.model_validate(whole | {"seq_length": 64} | settings)


def arguments(settings: PretrainConfig, newer: bool) -> dict[str, Any]:
    """What is asked for, by the names of one of the signatures."""
    base = SimpleNamespace(initialize_ub=from_2_8 if newer else until_2_7)
    if newer:
        base.UserBufferQuantizationMode = Modes
    given = buffer_arguments(settings, GPU, base)
    return inspect.signature(base.initialize_ub).bind(**given).arguments


@pytest.mark.parametrize("newer", [False, True])
def test_buffers_hold_a_microbatch_of_all_tensor_ranks(newer: bool) -> None:
    found = arguments(config(micro_batch_size=4), newer)
    assert found["shape"] == [4 * 64 // 2, LLAMA["hidden_size"]]
    assert (found["tp_size"], found["dtype"]) == (2, torch.bfloat16)
    assert found["bootstrap_backend"] == "nccl"


def test_buffers_hold_what_is_gathered() -> None:
    low = config(fp8="hybrid", fp8_recipe="tensorwise")
    mixed = config(fp8="hybrid", fp8_recipe="tensorwise", first_last_layers_bf16=True)
    assert not arguments(config(), newer=False)["use_fp8"]
    assert arguments(low, newer=False)["use_fp8"]
    assert arguments(config(), newer=True)["quantization_modes"] == [Modes.NONE]
    assert arguments(low, newer=True)["quantization_modes"] == [Modes.FP8]
    assert arguments(mixed, newer=True)["quantization_modes"] == [Modes.FP8, Modes.NONE]
    none = mixed.model_copy(update={"num_layers_at_start_in_bf16": 0})
    assert arguments(none, newer=True)["quantization_modes"] == [Modes.FP8, Modes.NONE]
    none = none.model_copy(update={"num_layers_at_end_in_bf16": 0})
    assert arguments(none, newer=True)["quantization_modes"] == [Modes.FP8]


def test_each_product_as_it_is_asked() -> None:
    given = {"qkv_fprop": {"method": "ring_exchange", "aggregate": True},
             "fc2_fprop": {"method": "pipeline", "num_sm": 8, "num_splits": 4}}  # fmt: skip
    assert arguments(config({"tp_comm_overlap_cfg": given}), newer=True)["ub_cfgs"] == given


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"qkv_fprob": {}}, "qkv_fprob"),
        ({"fc1_fprop": {"method": "pipeline"}}, "only what is scattered goes in a pipeline"),
        ({"fc1_fprop": {"num_sms": 8}}, "num_sms"),
        ({"qkv_dgrad": {"method": "ring_exchange"}, "qkv_wgrad": {"num_sm": 4}},
         "qkv_dgrad is ring_exchange and has its scatter to itself"),
    ],
)  # fmt: skip
def test_impossible_buffers_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        config({"tp_comm_overlap_cfg": given})
    whole = {"qkv_dgrad": {"method": "bulk"}, "qkv_wgrad": {"num_sm": 4}}
    assert config({"tp_comm_overlap_cfg": whole}).parallel.user_buffers() == whole


def test_a_configuration_without_the_overlap_is_refused() -> None:
    with pytest.raises(ValidationError, match="which is off"):
        config({"tp_comm_overlap": False, "tp_comm_overlap_cfg": {"fc1_fprop": {"num_sm": 1}}})


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of TransformerEngine, which is a stand-in."""
    asked: list[str] = []
    base = SimpleNamespace(
        initialize_ub=lambda **_: asked.append("initialize"),
        destroy_ub=lambda: asked.append("destroy"),
    )
    for name in ("transformer_engine", "transformer_engine.pytorch"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    module = ModuleType("transformer_engine.pytorch.module")
    module.base = base  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return asked


def test_buffers_are_there_within_and_gone_behind(engine: list[str]) -> None:
    with user_buffers(config(), GPU):
        assert engine == ["initialize"]
    assert engine == ["initialize", "destroy"]
    with pytest.raises(KeyError), user_buffers(config(), GPU):
        raise KeyError
    assert engine == ["initialize", "destroy"] * 2
    with user_buffers(config({"tp_comm_overlap": False}), GPU):
        assert len(engine) == 4


def test_a_gpu_without_them_says_what_to_do(
    engine: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise RuntimeError("does not support comm+GEMM overlap with CUDA Multicast")

    base = sys.modules["transformer_engine.pytorch.module"].base
    monkeypatch.setattr(base, "initialize_ub", refuse)
    with pytest.raises(ToolkitError, match="CUDA Multicast") as caught, user_buffers(config(), GPU):
        pass
    assert "UB_SKIPMC" in (caught.value.hint or "")
    assert engine == []


def test_the_layers_find_their_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """They look for them when they are made, and the ranks' groups outlive both."""
    order: list[str] = []

    @contextlib.contextmanager
    def within(name: str) -> Iterator[torch.device]:
        order.append(name)
        yield torch.device("cpu")
        order.append(f"no {name}")

    def build(*_: object, **__: object) -> SimpleNamespace:
        order.append("layers")
        return SimpleNamespace()

    corpus = SimpleNamespace(packed_length=None, vocab_size=300)
    monkeypatch.setattr(train, "layout_of", lambda *_: None)
    monkeypatch.setattr(train, "open_corpus", lambda *_: corpus)
    monkeypatch.setattr(train, "process_groups", lambda *_, **__: within("groups"))
    monkeypatch.setattr(train, "user_buffers", lambda *_: within("buffers"))
    monkeypatch.setattr(train, "build_training", build)
    monkeypatch.setattr(train, "_train", lambda *_: (None, {}))
    context = SimpleNamespace(world_size=2, rank=1, device="cpu", local_rank=1, seed=1)
    assert train.run(config(), context) is None  # type: ignore[arg-type]
    assert order == ["groups", "buffers", "layers", "no buffers", "no groups"]


def test_a_cpu_has_none() -> None:
    with pytest.raises(ToolkitError, match=r"parallel.tp_comm_overlap needs a GPU"):
        transformer_config(config().model, config().parallel)
