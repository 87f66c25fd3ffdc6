"""megatron-core's configuration on CPUs and GPUs, and weights that no layout changes."""

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.fusions import fused_cross_entropy
from megatron.core.transformer.enums import AttnBackend
from megatron.core.transformer.transformer_config import TransformerConfig
from pretrain_runs import GPT2, LLAMA, VOCAB

from toolkit.errors import ToolkitError
from toolkit.megatron import fusions
from toolkit.megatron import transformer as built
from toolkit.megatron.config import ModelConfig, ParallelConfig
from toolkit.megatron.distributed import process_groups
from toolkit.megatron.initialize import initialize_weights
from toolkit.megatron.model import build_model
from toolkit.megatron.settings import NumericsSettings
from toolkit.megatron.transformer import transformer_config

GPU = torch.device("cuda", 0)


def on_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
    shape: dict[str, Any],
    installed: tuple[str, ...] = ("transformer_engine",),
    parallel: dict[str, Any] | None = None,
    **numerics: Any,
) -> dict[str, Any]:
    """What megatron-core would be given on a GPU; it must know every name of it."""
    for place in (built, fusions):
        monkeypatch.setattr(place, "have", lambda module: module in installed)
    monkeypatch.setattr(built, "TransformerConfig", lambda **given: given)
    model = ModelConfig.model_validate(shape)
    given: dict[str, Any] = transformer_config(
        model,
        ParallelConfig.model_validate(parallel or {}),
        NumericsSettings.model_validate(numerics),
        GPU,
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


@pytest.mark.parametrize(
    ("changes", "fused"),
    [({}, True), ({"add_bias_linear": True}, False), ({"activation_func": "gelu_tanh"}, False)],
)
def test_experts_are_fused_where_there_is_a_kernel(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], fused: bool
) -> None:
    """The kernel that weighs an expert's output is one of gated SiLU without biases."""
    whole = {"parallel": {"expert_tensor_parallel_size": 1}}
    given = on_a_gpu(monkeypatch, {**LLAMA, "num_moe_experts": 4, **changes}, **whole)
    assert given["bias_activation_fusion"] is fused
    assert given["activation_func"] is F.silu or not fused


def test_what_is_asked_of_the_kernels_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = on_a_gpu(monkeypatch, LLAMA)
    assert plain["cross_entropy_loss_fusion"] and plain["bias_dropout_fusion"]
    assert plain["attention_backend"] is AttnBackend.auto
    assert not plain["gradient_accumulation_fusion"]  # there is no apex
    given = on_a_gpu(
        monkeypatch,
        GPT2,
        attention_backend="fused",
        bias_activation_fusion=False,
        cross_entropy_fusion_impl="te",
    )
    assert given["attention_backend"] is AttnBackend.fused
    assert given["cross_entropy_fusion_impl"] == "te"
    values = torch.linspace(-3, 3, 100)  # not fused, it is still the approximation
    assert torch.equal(given["activation_func"](values), F.gelu(values, approximate="tanh"))
    apex = ("transformer_engine", "fused_weight_gradient_mlp_cuda")
    assert on_a_gpu(monkeypatch, LLAMA, apex)["gradient_accumulation_fusion"]
    off = on_a_gpu(monkeypatch, LLAMA, apex, gradient_accumulation_fusion=False)
    assert not off["gradient_accumulation_fusion"]
    sharded = on_a_gpu(monkeypatch, LLAMA, apex, {"use_megatron_fsdp": True})
    assert not sharded["gradient_accumulation_fusion"]


def test_fused_losses_are_for_bf16_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """megatron-core's rounds the logits' gradient to BF16, whatever the weights are in."""
    for precision, fused in (("fp32", False), ("fp16", False), ("bf16", True)):
        given = on_a_gpu(monkeypatch, LLAMA, precision=precision)
        assert given["cross_entropy_loss_fusion"] is fused
    logits = torch.randn(4, 2, 50, requires_grad=True)
    with process_groups(ParallelConfig()):
        group = parallel_state.get_tensor_model_parallel_group()
        target = torch.randint(50, (4, 2))
        loss = fused_cross_entropy._VocabParallelCrossEntropy.apply(logits, target, group)
        loss.sum().backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad, logits.grad.bfloat16().float())


def test_grouped_experts_with_biases_have_no_dropout_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    experts = {**GPT2, "num_moe_experts": 4}
    assert on_a_gpu(monkeypatch, experts)["bias_dropout_fusion"]
    grouped = on_a_gpu(monkeypatch, experts, parallel={"moe_grouped_gemm": True})
    assert not grouped["bias_dropout_fusion"]


@pytest.mark.parametrize(
    ("numerics", "says"),
    [
        ({"attention_backend": "flash"}, "attention_backend: flash needs a GPU"),
        ({"apply_rope_fusion": True}, "apply_rope_fusion: true needs a GPU"),
        ({"gradient_accumulation_fusion": True}, "gradient_accumulation_fusion: true needs a GPU"),
    ],
)
def test_kernels_of_gpus_are_refused_on_cpus(numerics: dict[str, Any], says: str) -> None:
    model = ModelConfig.model_validate(LLAMA)
    with pytest.raises(ToolkitError, match=says):
        transformer_config(model, ParallelConfig(), NumericsSettings.model_validate(numerics))
    local = NumericsSettings(attention_backend="local", apply_rope_fusion=False)
    assert not transformer_config(model, ParallelConfig(), local).apply_rope_fusion


def test_kernels_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ToolkitError, match="fused_weight_gradient_mlp_cuda is not installed"):
        on_a_gpu(monkeypatch, LLAMA, gradient_accumulation_fusion=True)
    with pytest.raises(ToolkitError, match="flash-attn is not installed"):
        on_a_gpu(monkeypatch, LLAMA, attention_backend="flash")
    both = ("transformer_engine", "flash_attn")
    given = on_a_gpu(monkeypatch, LLAMA, both, attention_backend="flash")
    assert given["attention_backend"] is AttnBackend.flash
    with pytest.raises(ToolkitError, match="attention_backend: local"):
        on_a_gpu(monkeypatch, LLAMA, attention_backend="local")


def test_what_this_machine_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ModelConfig.model_validate(LLAMA)
    with pytest.raises(ToolkitError, match="fp8: hybrid needs a GPU"):
        transformer_config(model, ParallelConfig(), NumericsSettings(fp8="hybrid"))
    monkeypatch.setattr(built, "have", lambda module: False)
    with pytest.raises(ToolkitError, match="TransformerEngine is not installed"):
        transformer_config(model, ParallelConfig(), NumericsSettings(), GPU)


@pytest.mark.parametrize("shape", [LLAMA, GPT2])
def test_weights_depend_on_the_seed_alone(shape: dict[str, Any]) -> None:
    model = ModelConfig.model_validate(shape)

    def weights(seed: int, **changes: Any) -> dict[str, torch.Tensor]:
        changed = model.model_copy(update=changes)
        network = build_model(changed, vocab_size=VOCAB)
        torch.rand(7)  # whatever was drawn before must not matter
        initialize_weights([network], changed, seed, torch.device("cpu"))
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
        initialize_weights([network], model, 1, torch.device("cpu"))
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
