import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_llama import EOS, make_model, make_tokenizer
from transformers import GenerationConfig

from toolkit.artifacts import Parent, publish
from toolkit.errors import ToolkitError
from toolkit.hf import base_folder, load_model, load_tokenizer


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("base"))


def make_adapter(folder: Path, base: Path) -> Path:
    torch.manual_seed(1)
    config = LoraConfig(task_type="CAUSAL_LM", r=2, init_lora_weights=False)
    get_peft_model(load_model(base), config).save_pretrained(folder)
    return folder


def name_base(folder: Path, name: str | None) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = name
    (folder / "adapter_config.json").write_text(json.dumps(config))


def test_a_model_folder_loads_dense_and_in_evaluation_mode(base: Path) -> None:
    model = load_model(base)
    assert not model.training
    assert model.dtype == torch.float32
    assert load_model(base, dtype="bfloat16").dtype == torch.bfloat16
    assert load_tokenizer(base).eos_token == EOS


def test_an_adapter_is_merged_onto_the_base_it_names(tmp_path: Path, base: Path) -> None:
    model = load_model(make_adapter(tmp_path / "adapter", base))
    assert type(model).__name__ == "LlamaForCausalLM"
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(model.state_dict()[name], load_model(base).state_dict()[name])
    assert model.state_dict().keys() == load_model(base).state_dict().keys()


def test_a_merged_model_can_be_trained_again(tmp_path: Path, base: Path) -> None:
    model = load_model(make_adapter(tmp_path / "adapter", base))
    assert all(weight.requires_grad for weight in model.parameters())


def test_an_adapter_without_a_tokenizer_has_its_bases(tmp_path: Path, base: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", base)
    assert load_tokenizer(adapter).get_vocab() == make_tokenizer().get_vocab()


def test_an_adapter_says_where_generation_stops(tmp_path: Path, base: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", base)
    GenerationConfig(eos_token_id=[0, 6]).save_pretrained(adapter)
    assert load_model(adapter).generation_config.eos_token_id == [0, 6]


def test_our_artifacts_find_their_base_through_their_parents(tmp_path: Path, base: Path) -> None:
    """Also when the run has been moved, and among several models."""
    built = make_adapter(tmp_path / "run" / "chat" / "building", base)
    name_base(built, "/moved/away")
    here = make_model(tmp_path / "run" / "base-hf" / "artifact")
    other = Parent("teacher", "model", "x", "/nowhere")
    parent = Parent("base-hf", "model", "x", "../../base-hf/artifact")
    artifact = publish(
        built,
        tmp_path / "run" / "chat" / "artifact",
        artifact_type="adapter",
        stage="chat",
        kind="sft",
        fingerprint="f",
        parents=[other, parent],
        info={"base": "base-hf"},
    )
    assert base_folder(artifact.folder) == here
    moved = (tmp_path / "run").rename(tmp_path / "elsewhere")
    folder = moved / "chat" / "artifact"
    assert base_folder(folder) == moved / "base-hf" / "artifact"
    load_model(folder)
    (moved / "base-hf").rename(moved / "gone")
    with pytest.raises(ToolkitError, match="that this adapter was trained on is gone"):
        load_model(folder)


def test_a_base_that_is_nowhere_is_named(tmp_path: Path, base: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", base)
    name_base(adapter, "someone/never-downloaded")
    with pytest.raises(ToolkitError, match="someone/never-downloaded is neither a folder nor"):
        load_model(adapter)
    name_base(adapter, None)
    with pytest.raises(ToolkitError, match="no base model named"):
        load_model(adapter)


def test_damaged_and_wrong_folders_are_the_users_to_mend(tmp_path: Path, base: Path) -> None:
    with pytest.raises(ToolkitError, match="no such folder"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(ToolkitError, match="no tokenizer here"):
        load_tokenizer(tmp_path)
    tokenizer = tmp_path / "tokenizer"
    make_tokenizer().save_pretrained(tokenizer)
    with pytest.raises(ToolkitError, match="a tokenizer, where a model or an adapter"):
        load_model(tokenizer)
    (tokenizer / "tokenizer.json").write_text("{")
    with pytest.raises(ToolkitError, match="can't read the tokenizer"):
        load_tokenizer(tokenizer)
    cut = make_model(tmp_path / "cut")
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ToolkitError, match="can't load the model"):
        load_model(cut)
    adapter = make_adapter(tmp_path / "adapter", base)
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(ToolkitError, match="not a readable adapter config"):
        load_model(adapter)
