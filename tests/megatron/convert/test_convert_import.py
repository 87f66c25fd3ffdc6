"""Import: the way back gives the same weights, and what Megatron can't do is refused by name."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from convert_shapes import SHAPES, VOCABULARY
from safetensors.torch import load_file, save_file
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from toolkit.artifacts import Artifact, read_artifact
from toolkit.context import StageContext
from toolkit.errors import StageError, ToolkitError
from toolkit.megatron import checkpoint, state
from toolkit.megatron.config import ModelConfig, ParallelConfig, TrainedModel
from toolkit.megatron.convert import export, gate, import_hf, mapping
from toolkit.megatron.convert.config import ExportConfig, ImportConfig
from toolkit.megatron.convert.llama import LINEARS
from toolkit.megatron.convert.network import build_network
from toolkit.megatron.distributed import process_groups

Contexts = Callable[..., StageContext]
WEIGHTS = "model.safetensors"


def exported(name: str, source: Path, contexts: Contexts, **settings: Any) -> Artifact:
    context = contexts(name, "export", base=source)
    return export.run(ExportConfig(checkpoint="base", **settings), context)


def imported(name: str, source: Path, contexts: Contexts, **settings: Any) -> Artifact:
    context = contexts(name, "import", model=source)
    return import_hf.run(ImportConfig(model="model", **settings), context)


@pytest.fixture
def llama(tmp_path: Path, chat_tokenizer: Path) -> Path:
    """A model that transformers made, with weights large enough to matter."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    torch.manual_seed(3)
    folder = tmp_path / "made-elsewhere"
    LlamaForCausalLM(config).save_pretrained(folder)
    shutil.copytree(chat_tokenizer, folder, dirs_exist_ok=True)
    return folder


def change(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def refusal(folder: Path, contexts: Contexts) -> str:
    context = contexts("refused", "import", model=folder)
    with pytest.raises(ToolkitError) as caught:
        import_hf.run(ImportConfig(model="model"), context)
    assert not (context.folder / "artifact").exists()
    return str(caught.value)


@pytest.mark.parametrize("name", SHAPES)
def test_export_then_import_then_export_gives_the_same_bytes(
    name: str, checkpoints: Path, stage_context: Contexts
) -> None:
    first = exported("first", checkpoints / name, stage_context)
    back = imported("back", first.folder, stage_context)
    second = exported("second", back.folder, stage_context)
    assert second.path(WEIGHTS).read_bytes() == first.path(WEIGHTS).read_bytes()
    for file in ("config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"):
        assert second.path(file).read_text() == first.path(file).read_text(), file
    assert back.info["max_logit_difference"] <= 5e-5
    assert back.info["parameters"] >= first.info["parameters"]


def test_a_model_made_elsewhere_comes_in_and_goes_out_unchanged(
    llama: Path, stage_context: Contexts
) -> None:
    back = imported("back", llama, stage_context)
    assert back.type == "checkpoint"
    assert back.info["iteration"] == 0
    out = exported("out", back.folder, stage_context)
    theirs, ours = load_file(llama / WEIGHTS), load_file(out.path(WEIGHTS))
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_data_type_of_the_model_is_kept(
    dtype: str, llama: Path, stage_context: Contexts
) -> None:
    """Rounded once, and exact from then on: the gate compares in float32 after rounding."""
    rounded = imported("rounded", llama, stage_context, dtype=dtype)
    out = exported("out", rounded.folder, stage_context)
    again = exported("again", imported("in", out.folder, stage_context).folder, stage_context)
    assert out.info["dtype"] == again.info["dtype"] == dtype
    assert out.path(WEIGHTS).read_bytes() == again.path(WEIGHTS).read_bytes()


def test_pretraining_can_start_from_it(llama: Path, stage_context: Contexts) -> None:
    """By what ``load`` calls, at another padding of the vocabulary than import's: TP=3's."""
    back = imported("back", llama, stage_context)
    model = checkpoint.read_model(back.folder)
    shape = {
        name: getattr(model, name) for name in ModelConfig.model_fields.keys() - {"vocab_size"}
    }
    wanted = ModelConfig(**{**shape, "make_vocab_size_divisible_by": 96, "kv_channels": 16})
    checkpoint.check_model(back.folder, TrainedModel.of(wanted, VOCABULARY, 384))
    sequences = gate.token_sequences(model, 64)
    with process_groups(ParallelConfig()):
        network = build_network(TrainedModel.of(wanted, VOCABULARY, 384))
        state.load_weights([network], back.folder)
        logits = gate.megatron_logits(network, model, sequences)
    reference = gate.hf_logits(LlamaForCausalLM.from_pretrained(llama), sequences)
    assert gate.compare(reference, logits).max_difference <= 5e-5
    assert read_artifact(back.folder).path("tokenizer", "tokenizer.json").is_file()


def test_old_gpt2_files_with_their_buffers_come_in(
    tmp_path: Path, chat_tokenizer: Path, stage_context: Contexts
) -> None:
    """The files on the hub have no ``transformer.`` prefix, and causal masks among the weights."""
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=32,
        n_embd=48,
        n_layer=2,
        n_head=4,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
    )
    folder = tmp_path / "gpt2-hub"
    GPT2LMHeadModel(config).save_pretrained(folder)
    shutil.copytree(chat_tokenizer, folder, dirs_exist_ok=True)
    tensors = load_file(folder / WEIGHTS)
    old = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    old |= {f"h.{layer}.attn.bias": torch.ones(1, 1, 32, 32).tril() for layer in range(2)}
    save_file(old, folder / WEIGHTS, metadata={"format": "pt"})
    back = imported("back", folder, stage_context)
    assert checkpoint.read_model(back.folder).activation_func == "gelu_tanh"
    out = load_file(exported("out", back.folder, stage_context).path(WEIGHTS))
    assert all(torch.equal(out[name], tensors[name]) for name in tensors)


def test_the_gate_refuses_a_wrong_way_back(
    llama: Path, stage_context: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    swapped = replace(mapping.GATED, join=lambda parts, _: torch.cat(list(parts)[::-1]))
    linears = tuple(
        (ours, theirs, swapped if codec is mapping.GATED else codec)
        for ours, theirs, codec in LINEARS
    )
    monkeypatch.setattr("toolkit.megatron.convert.llama.LINEARS", linears)
    context = stage_context("refused", "import", model=llama)
    with pytest.raises(StageError, match="logits differ by"):
        import_hf.run(ImportConfig(model="model"), context)
    assert not (context.folder / "artifact").exists()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"attention_bias": True}, "mlp_bias is False"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"sliding_window": 32}, "sliding_window is 32"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config is set"),
        ({"auto_map": {"AutoModelForCausalLM": "own.Model"}}, "auto_map is set"),
        ({"architectures": ["LlamaForTokenClassification"]}, "LlamaForTokenClassification"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "rope_type is 'dynamic'",
        ),
        (
            {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_parameters": None},
            "rope_type is 'linear'",
        ),
    ],
)
def test_unsupported_features_are_refused_by_name(
    settings: dict[str, Any], named: str, llama: Path, stage_context: Contexts
) -> None:
    change(llama, **settings)
    text = refusal(llama, stage_context)
    assert named in text
    assert "config.json" in text


def test_all_unsupported_features_are_named_at_once(llama: Path, stage_context: Contexts) -> None:
    change(llama, hidden_act="relu", mlp_bias=True)
    text = refusal(llama, stage_context)
    assert "hidden_act" in text
    assert "mlp_bias" in text


def test_another_architecture_is_refused(
    tmp_path: Path, chat_tokenizer: Path, stage_context: Contexts
) -> None:
    config = MistralConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    MistralForCausalLM(config).save_pretrained(tmp_path / "mistral")
    shutil.copytree(chat_tokenizer, tmp_path / "mistral", dirs_exist_ok=True)
    text = refusal(tmp_path / "mistral", stage_context)
    assert "can't import the architecture MistralForCausalLM" in text
    assert "LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, GPT2LMHeadModel" in text


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), "1 missing weights, such as"),
        (lambda t: t.update(stray=torch.zeros(2)), "1 unexpected weights, such as stray"),
    ],
)
def test_weights_that_transformers_would_make_up_or_drop(
    spoil: Callable[[dict[str, torch.Tensor]], Any],
    named: str,
    llama: Path,
    stage_context: Contexts,
) -> None:
    tensors = load_file(llama / WEIGHTS)
    spoil(tensors)
    save_file(tensors, llama / WEIGHTS, metadata={"format": "pt"})
    assert named in refusal(llama, stage_context)


def test_weights_of_another_shape(llama: Path, stage_context: Contexts) -> None:
    tensors = load_file(llama / WEIGHTS)
    tensors["model.norm.weight"] = torch.ones(65)
    save_file(tensors, llama / WEIGHTS, metadata={"format": "pt"})
    assert "1 mismatched weights, such as ('model.norm.weight'" in refusal(llama, stage_context)


def test_a_file_cut_short(llama: Path, stage_context: Contexts) -> None:
    path = llama / WEIGHTS
    path.write_bytes(path.read_bytes()[:1000])
    assert str(llama) in refusal(llama, stage_context)


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "llama", "hidden_size": "wide"}'])
def test_a_configuration_that_is_none(text: str, llama: Path, stage_context: Contexts) -> None:
    (llama / "config.json").write_text(text)
    assert "config.json" in refusal(llama, stage_context)


def test_a_model_without_a_tokenizer(llama: Path, stage_context: Contexts) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (llama / name).unlink()
    assert "no tokenizer here" in refusal(llama, stage_context)


def test_an_empty_architecture_is_told_by_its_type(llama: Path, stage_context: Contexts) -> None:
    change(llama, architectures=None)
    assert imported("back", llama, stage_context).info["architecture"] == "LlamaForCausalLM"
