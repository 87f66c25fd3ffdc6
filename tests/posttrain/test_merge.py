import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_llama import make_model

from toolkit.artifacts import read_artifact
from toolkit.context import StageContext
from toolkit.errors import StageError, ToolkitError
from toolkit.hf import load_adapter, load_model, load_tokenizer
from toolkit.posttrain import merge
from toolkit.posttrain.config import MergeConfig

Contexts = Callable[..., StageContext]


def make_adapter(folder: Path, base: Path, **options: Any) -> Path:
    """An adapter whose matrices are random, so that it changes every logit."""
    torch.manual_seed(1)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", **options)
    model = get_peft_model(load_model(base), config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("base"))


def run(context: StageContext, **values: Any) -> Any:
    return merge.run(MergeConfig.model_validate({"adapter": "chat", **values}), context)


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True}], ids=str)
def test_merged_is_base_plus_adapter(
    tmp_path: Path, base: Path, stage_context: Contexts, options: dict[str, bool]
) -> None:
    adapter = make_adapter(tmp_path / "adapter", base, **options)
    artifact = run(stage_context("merged", "merge", chat=adapter))
    assert artifact.type == "model"
    assert artifact.info["method"] == "LORA"
    assert artifact.info["largest_logit_difference"] < 1e-4
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        apart = PeftModel.from_pretrained(load_model(base), adapter)(input_ids=ids).logits
        merged = load_model(artifact.folder)(input_ids=ids).logits
        plain = load_model(base)(input_ids=ids).logits
    torch.testing.assert_close(merged, apart, atol=1e-4, rtol=0)
    assert (plain - apart).abs().max() > 0.1
    assert load_tokenizer(artifact.folder).chat_template == load_tokenizer(base).chat_template
    assert not list(artifact.folder.glob("adapter*"))


def test_an_adapter_on_an_adapter(tmp_path: Path, base: Path, stage_context: Contexts) -> None:
    first = make_adapter(tmp_path / "first", base)
    second = make_adapter(tmp_path / "second", first)
    config = json.loads((second / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "../first"  # relative to the adapter's own folder
    (second / "adapter_config.json").write_text(json.dumps(config))
    artifact = run(stage_context("merged", "merge", chat=second))
    name = "model.layers.0.mlp.up_proj.weight"
    weight = load_model(base).state_dict()[name]
    for folder in (first, second):
        tensors = load_file(folder / "adapter_model.safetensors")
        a, b = (tensors[f"base_model.model.{name[:-7]}.lora_{x}.weight"] for x in "AB")
        weight = weight + b @ a * 2  # lora_alpha 8 / r 4
    torch.testing.assert_close(load_model(artifact.folder).state_dict()[name], weight)


def test_the_precision_is_that_of_the_base_unless_set(
    tmp_path: Path, stage_context: Contexts
) -> None:
    half = make_model(tmp_path / "half")
    load_model(half, dtype="bfloat16").save_pretrained(half)
    adapter = make_adapter(tmp_path / "adapter", half)
    artifact = run(stage_context("auto", "merge", chat=adapter))
    assert artifact.info["dtype"] == "bfloat16"
    assert artifact.info["largest_logit_difference"] > 0
    tensors = load_file(artifact.path("model.safetensors"))
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    full = run(stage_context("full", "merge", chat=adapter), dtype="float32")
    assert full.info["largest_logit_difference"] < 1e-4


def test_a_merge_that_went_wrong_is_refused(
    tmp_path: Path, base: Path, stage_context: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = make_adapter(tmp_path / "adapter", base)
    right = merge.merge

    def wrong(applied: PeftModel, folder: Path) -> Any:
        model = right(applied, folder)
        model.model.layers[0].mlp.up_proj.weight.data *= 1.5
        return model

    monkeypatch.setattr(merge, "merge", wrong)
    context = stage_context("merged", "merge", chat=adapter)
    with pytest.raises(StageError, match=r"differ by .* more than the tolerance of 0\.001"):
        run(context)
    assert not (context.folder / "artifact").exists()


def test_weights_that_are_not_finite_are_refused(
    tmp_path: Path, base: Path, stage_context: Contexts
) -> None:
    adapter = make_adapter(tmp_path / "adapter", base)
    tensors = load_file(adapter / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ToolkitError, match="can't merge this adapter"):
        run(stage_context("merged", "merge", chat=adapter))


def test_methods_that_do_not_merge_are_refused_by_name(
    tmp_path: Path, base: Path, stage_context: Contexts
) -> None:
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    get_peft_model(load_model(base), config).save_pretrained(tmp_path / "prefix")
    with pytest.raises(ToolkitError, match="the method PREFIX_TUNING can't be merged") as caught:
        run(stage_context("merged", "merge", chat=tmp_path / "prefix"))
    assert "LORA" in str(caught.value)


def test_an_adapter_of_another_base_is_refused(
    tmp_path: Path, base: Path, stage_context: Contexts
) -> None:
    wide = make_model(tmp_path / "wide", hidden_size=48)
    adapter = make_adapter(tmp_path / "adapter", base)
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(wide)
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ToolkitError, match="the adapter doesn't fit its base"):
        run(stage_context("merged", "merge", chat=adapter))


def test_the_adapter_artifact_reads_back(tmp_path: Path, base: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", base)
    assert read_artifact(adapter).type == "adapter"
    assert not load_adapter(adapter).training
