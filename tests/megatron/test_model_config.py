"""megatron-core's configuration on CPUs and GPUs, and weights that no layout changes."""

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig
from pretrain_runs import GPT2, LLAMA, VOCAB

from toolkit.errors import ToolkitError
from toolkit.megatron import transformer as built
from toolkit.megatron.config import ModelConfig, ParallelConfig
from toolkit.megatron.distributed import process_groups
from toolkit.megatron.initialize import initialize_weights
from toolkit.megatron.model import build_model
from toolkit.megatron.settings import NumericsSettings
from toolkit.megatron.transformer import transformer_config

GPU = torch.device("cuda", 0)


def on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, shape: dict[str, Any], **numerics: Any
) -> dict[str, Any]:
    """What megatron-core would be given on a GPU; it must know every name of it."""
    monkeypatch.setattr(built, "_have", lambda module: module == "transformer_engine")
    monkeypatch.setattr(built, "TransformerConfig", lambda **given: given)
    model = ModelConfig.model_validate(shape)
    given: dict[str, Any] = transformer_config(
        model, ParallelConfig(), NumericsSettings.model_validate(numerics), GPU
    )
    known = {field.name for field in dataclasses.fields(TransformerConfig)}
    assert given.keys() <= known
    return given


def test_a_gpu_computes_in_bf16_with_fused_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    given = on_a_gpu(monkeypatch, LLAMA)
    assert given["bf16"] and not given["fp16"]
    assert given["params_dtype"] == given["pipeline_dtype"] == torch.bfloat16
    assert given["bias_activation_fusion"] and given["apply_rope_fusion"]
    assert given["activation_func"] is F.silu
    assert not given["use_cpu_initialization"]
    assert "fp8" not in given


def test_fp8_is_passed_through(monkeypatch: pytest.MonkeyPatch) -> None:
    given = on_a_gpu(monkeypatch, LLAMA, fp8="hybrid", fp8_recipe="blockwise", fp8_margin=1)
    assert (given["fp8"], given["fp8_recipe"], given["fp8_margin"]) == ("hybrid", "blockwise", 1)


def test_gpt2_activates_by_the_tanh_approximation_on_both(monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu = transformer_config(ModelConfig.model_validate(GPT2), ParallelConfig()).activation_func
    values = torch.linspace(-3, 3, 100)
    assert torch.equal(on_cpu(values), F.gelu(values, approximate="tanh"))
    given = on_a_gpu(monkeypatch, GPT2)
    assert given["activation_func"] is F.gelu  # fused with the bias it is the approximation
    assert given["bias_activation_fusion"] and not given["apply_rope_fusion"]


def test_the_exact_gelu_is_not_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    given = on_a_gpu(monkeypatch, {**GPT2, "activation_func": "gelu"})
    assert given["activation_func"] is F.gelu
    assert not given["bias_activation_fusion"]


def test_what_this_machine_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ModelConfig.model_validate(LLAMA)
    with pytest.raises(ToolkitError, match="fp8: hybrid needs a GPU"):
        transformer_config(model, ParallelConfig(), NumericsSettings(fp8="hybrid"))
    monkeypatch.setattr(built, "_have", lambda module: False)
    with pytest.raises(ToolkitError, match="TransformerEngine is not installed"):
        transformer_config(model, ParallelConfig(), NumericsSettings(), GPU)


@pytest.mark.parametrize("shape", [LLAMA, GPT2])
def test_weights_depend_on_the_seed_alone(shape: dict[str, Any]) -> None:
    model = ModelConfig.model_validate(shape)

    def weights(seed: int, **changes: Any) -> dict[str, torch.Tensor]:
        changed = model.model_copy(update=changes)
        network = build_model(changed, vocab_size=VOCAB)
        torch.rand(7)  # whatever was drawn before must not matter
        initialize_weights([network], changed, seed)
        return {name: weight.detach() for name, weight in network.named_parameters()}

    with process_groups(ParallelConfig()):
        first, again, other = weights(1), weights(1), weights(2)
        longer = weights(1, num_layers=6)
    projection = "decoder.layers.1.self_attention.linear_proj.weight"
    matrix = "decoder.layers.1.self_attention.linear_qkv.weight"
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first[matrix], other[matrix])
    assert torch.equal(first[matrix], longer[matrix])
    assert not torch.equal(first[matrix], first[matrix.replace(".1.", ".2.")])
    assert first[matrix].std() == pytest.approx(0.02, rel=0.05)
    assert first[projection].std() == pytest.approx(0.02 / (2 * 4) ** 0.5, rel=0.05)
    norms = [t for n, t in first.items() if n.endswith("layernorm.weight")]
    assert len(norms) == 9
    assert all(torch.equal(t, torch.ones_like(t)) for t in norms)
    biases = [t for n, t in first.items() if n.endswith("bias")]
    assert not any(t.any() for t in biases)


def test_padding_is_no_token() -> None:
    model = ModelConfig.model_validate(LLAMA)
    tokens = torch.randint(0, VOCAB, (2, 32))
    positions = torch.arange(32).expand(2, 32)
    with process_groups(ParallelConfig()):
        network = build_model(model, vocab_size=VOCAB)
        initialize_weights([network], model, 1)
        logits = network(tokens, positions, None)
        loss = network(tokens, positions, None, labels=tokens)
        loss.mean().backward()
    assert logits.shape == (2, 32, 384)
    assert torch.isneginf(logits[..., VOCAB:]).all()
    assert torch.isfinite(logits[..., :VOCAB]).all()
    expected = F.cross_entropy(logits[..., :VOCAB].flatten(0, 1), tokens.flatten())
    assert loss.mean().item() == pytest.approx(expected.item(), abs=1e-6)
    gradient = network.output_layer.weight.grad
    assert torch.isfinite(gradient).all()
    assert not gradient[VOCAB:].any()
