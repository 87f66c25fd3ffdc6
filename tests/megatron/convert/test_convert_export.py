"""Export from TP=2 x PP=2: the same logits, the weights that were saved, and the gate."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from convert_save_checkpoints import known_values
from convert_shapes import SHAPES, VOCABULARY
from megatron.core import dist_checkpointing
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

from toolkit.artifacts import Artifact
from toolkit.context import StageContext
from toolkit.errors import StageError, ToolkitError
from toolkit.megatron.config import TrainedModel
from toolkit.megatron.convert import export, gate, mapping
from toolkit.megatron.convert.config import ExportConfig
from toolkit.megatron.convert.families import Family, family_of
from toolkit.megatron.convert.gpt2 import GPT2
from toolkit.megatron.convert.llama import LLAMA, Llama
from toolkit.megatron.convert.mapping import Codec, Rule

Contexts = Callable[..., StageContext]
ATTENTION, MLP = "decoder.layers.self_attention", "decoder.layers.mlp"


@pytest.fixture
def exported(checkpoints: Path, stage_context: Contexts) -> Callable[..., Artifact]:
    """A factory: ``exported("llama", dtype="bfloat16")``."""

    def make(name: str, **settings: Any) -> Artifact:
        context = stage_context(f"{name}-hf", "export", base=checkpoints / name)
        return export.run(ExportConfig(checkpoint="base", **settings), context)

    return make


@pytest.mark.parametrize("name", SHAPES)
def test_logits_are_the_same(name: str, exported: Callable[..., Artifact]) -> None:
    """The bar is 1e-4; float32 alone gives about 1e-5, so anything above 5e-5 is a bug."""
    info = exported(name).info
    assert info["max_logit_difference"] <= 5e-5
    assert info["largest_logit"] > 1
    assert info["sequence_lengths"][-1] == SHAPES[name]["max_position_embeddings"]
    assert info["iteration"] == 7


def test_the_exported_tensors_are_those_that_the_ranks_saved(
    exported: Callable[..., Artifact],
) -> None:
    """Independent of the gate and the codecs: against the values that each rank filled in."""
    found = load_file(exported("llama").path("model.safetensors"))
    embedding = known_values("embedding.word_embeddings.weight", (), (384, 64))
    assert torch.equal(found["model.embed_tokens.weight"], embedding[:VOCABULARY])
    for layer in range(4):
        ours = f"model.layers.{layer}"
        # [group, 2 queries + key + value, 16 channels, hidden]
        qkv = known_values(f"{ATTENTION}.linear_qkv.weight", (layer,), (128, 64))
        grouped = qkv.reshape(2, 4, 16, 64)
        query, key = grouped[:, :2].reshape(64, 64), grouped[:, 2].reshape(32, 64)
        assert torch.equal(found[f"{ours}.self_attn.q_proj.weight"], query)
        assert torch.equal(found[f"{ours}.self_attn.k_proj.weight"], key)
        # Both halves of the gated matrix are tensors of their own in the known values.
        down = known_values(f"{MLP}.linear_fc2.weight", (layer,), (64, 160))
        assert torch.equal(found[f"{ours}.mlp.down_proj.weight"], down)
        norm = known_values(f"{MLP}.linear_fc1.layer_norm_weight", (layer,), (64,))
        assert torch.equal(found[f"{ours}.post_attention_layernorm.weight"], norm)


def test_interleaved_chunks_export_to_the_same_bytes(exported: Callable[..., Artifact]) -> None:
    plain, interleaved = exported("llama"), exported("interleaved")
    weights = "model.safetensors"
    assert plain.path(weights).read_bytes() == interleaved.path(weights).read_bytes()


def test_a_tied_model_has_no_output_layer_of_its_own(exported: Callable[..., Artifact]) -> None:
    folder = exported("llama-tied").folder
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_generation_stops_at_the_end_of_a_turn_and_of_a_document(
    exported: Callable[..., Artifact], chat_tokenizer: Path
) -> None:
    folder = exported("gpt2").folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in ("<|im_end|>", "<|endoftext|>")}
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.generation_config.eos_token_id == list(ids.values())
    assert model.config.eos_token_id == ids["<|im_end|>"]
    assert model.config.bos_token_id == ids["<|endoftext|>"]
    assert model.config.pad_token_id == tokenizer.pad_token_id
    for name in ("chat_template.jinja", "tokenizer.json"):
        assert (folder / name).read_bytes() == (chat_tokenizer / name).read_bytes()


def test_older_readers_find_the_rotary_settings(exported: Callable[..., Artifact]) -> None:
    """Before transformers 5 they were called so; without them 10000 would be taken, silently."""
    plain = json.loads(exported("llama").path("config.json").read_text())
    assert (plain["rope_theta"], plain["rope_scaling"]) == (500_000.0, None)
    assert (plain["torch_dtype"], plain["architectures"]) == ("float32", ["LlamaForCausalLM"])
    scaled = json.loads(exported("llama-3.1").path("config.json").read_text())
    assert scaled["rope_scaling"]["rope_type"] == "llama3"
    assert scaled["rope_theta"] == scaled["rope_parameters"]["rope_theta"] == 500_000.0


def test_shards_are_loaded_as_one_model(exported: Callable[..., Artifact]) -> None:
    """A megabyte is the smallest limit: the 844 kB of the model are made to need two."""
    artifact = exported("llama-3.1", max_shard_size="1MB")
    assert artifact.path("model.safetensors.index.json").is_file()
    assert len(list(artifact.folder.glob("model-*-of-00002.safetensors"))) == 2
    assert artifact.info["max_logit_difference"] <= 5e-5


def test_bfloat16_stays_and_float32_is_rounded_with_the_loss_told(
    exported: Callable[..., Artifact],
) -> None:
    kept = exported("bf16")
    assert kept.info["dtype"] == "bfloat16"
    assert "rounding_logit_difference" not in kept.info
    rounded = exported("llama", dtype="bfloat16")
    assert rounded.info["max_logit_difference"] <= 5e-5
    assert 1e-3 < rounded.info["rounding_logit_difference"] < 1
    tensors = [load_file(a.path("model.safetensors")) for a in (kept, rounded)]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])


# ---- the gate, against every kind of mistake a table can have


def reordered(codec: Codec, order: tuple[int, ...]) -> Codec:
    """The same parts under each other's names."""
    return replace(codec, split=lambda t, m: [list(codec.split(t, m))[i] for i in order])


def _swap_gate_and_up(rule: Rule) -> Rule:
    gated = rule.codec is mapping.GATED
    return replace(rule, codec=reordered(rule.codec, (1, 0))) if gated else rule


def _swap_key_and_value(rule: Rule) -> Rule:
    qkv = rule.codec is mapping.QKV
    return replace(rule, codec=reordered(rule.codec, (0, 2, 1))) if qkv else rule


def _forget_the_groups(rule: Rule) -> Rule:
    plain = Codec(split=lambda t, m: t.split([64, 32, 32]), join=mapping.QKV.join)
    return replace(rule, codec=plain) if rule.codec is mapping.QKV else rule


def _swap_norms(rule: Rule) -> Rule:
    names = ("input_layernorm", "post_attention_layernorm")
    for ours, theirs in (names, names[::-1]):
        if ours in rule.hf[0]:
            return replace(rule, hf=(rule.hf[0].replace(ours, theirs),))
    return rule


def _swap_layers(rule: Rule) -> Rule:
    numbers = {"layers.1.": "layers.2.", "layers.2.": "layers.1."}
    for ours, theirs in numbers.items():
        if ours in rule.hf[0]:
            return replace(rule, hf=tuple(name.replace(ours, theirs) for name in rule.hf))
    return rule


def _swap_embeddings(rule: Rule) -> Rule:
    names = {"model.embed_tokens.weight": "lm_head.weight"}
    names |= {theirs: ours for ours, theirs in names.items()}
    return replace(rule, hf=tuple(names.get(name, name) for name in rule.hf))


def _leave_a_square_matrix_as_it_is(rule: Rule) -> Rule:
    square = rule.hf[0].endswith("attn.c_proj.weight")
    return replace(rule, codec=mapping.SAME) if square else rule


def _leave_biases_in_groups(rule: Rule) -> Rule:
    fused = rule.codec is mapping.FUSED_QKV
    return replace(rule, codec=mapping.SAME) if fused else rule


class Mistaken(Family):
    """A family whose rules, or configuration, were tampered with."""

    def __init__(
        self,
        family: Family,
        rule: Callable[[Rule], Rule] = lambda rule: rule,
        **settings: Any,
    ) -> None:
        self.family, self.rule, self.settings = family, rule, settings
        self.architecture, self.model_type = family.architecture, family.model_type

    def obstacles(self, model: Any) -> Iterator[str]:
        return self.family.obstacles(model)

    def refusals(self, config: PreTrainedConfig) -> Iterator[str]:
        return self.family.refusals(config)

    def rules(self, model: Any) -> Iterator[Rule]:
        return map(self.rule, self.family.rules(model))

    def hf_config(self, model: Any, tokens: dict[str, int | None]) -> PreTrainedConfig:
        config = self.family.hf_config(model, tokens)
        for name, value in self.settings.items():
            setattr(config, name, value)
        return config

    def model_config(self, config: PreTrainedConfig) -> Any:
        return self.family.model_config(config)


@pytest.mark.parametrize(
    ("name", "mistaken"),
    [
        ("llama", Mistaken(LLAMA, _swap_gate_and_up)),
        ("llama", Mistaken(LLAMA, _swap_key_and_value)),
        ("llama", Mistaken(LLAMA, _forget_the_groups)),
        ("llama", Mistaken(LLAMA, _swap_norms)),
        ("llama", Mistaken(LLAMA, _swap_layers)),
        ("llama", Mistaken(LLAMA, _swap_embeddings)),
        ("gpt2", Mistaken(GPT2(), _leave_a_square_matrix_as_it_is)),
        ("gpt2", Mistaken(GPT2(), _leave_biases_in_groups)),
        ("gpt2", Mistaken(GPT2(), activation_function="gelu")),
        ("gpt2", Mistaken(GPT2(), layer_norm_epsilon=1e-2)),
        ("llama", Mistaken(LLAMA, rms_norm_eps=1e-2)),
        ("llama", Mistaken(LLAMA, hidden_act="gelu")),
        (
            "llama",
            Mistaken(LLAMA, rope_parameters={"rope_type": "default", "rope_theta": 10_000.0}),
        ),
        (
            "llama-3.1",
            Mistaken(LLAMA, rope_parameters={"rope_type": "default", "rope_theta": 500_000.0}),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else value.rule.__name__.strip("_"),
)
def test_the_gate_refuses_mistakes(
    name: str,
    mistaken: Mistaken,
    checkpoints: Path,
    stage_context: Contexts,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(export, "FAMILIES", (mistaken,))
    context = stage_context("hf", "export", base=checkpoints / name)
    with pytest.raises(StageError, match="logits differ by") as caught:
        export.run(ExportConfig(checkpoint="base"), context)
    assert "nothing was published" in str(caught.value)
    assert "position" in str(caught.value)
    assert not (context.folder / "artifact").exists()


def test_the_gate_reads_what_is_on_disk(
    checkpoints: Path, stage_context: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One weight changed between writing and publishing is found."""
    write = export.write_weights

    def damaging(tensors: Any, folder: Path, *rest: Any) -> int:
        count = write(tensors, folder, *rest)
        path = folder / "model.safetensors"
        content = bytearray(path.read_bytes())
        content[-4 * 64 * 300 :] = bytes(4 * 64 * 300)
        path.write_bytes(content)
        return count

    monkeypatch.setattr(export, "write_weights", damaging)
    context = stage_context("hf", "export", base=checkpoints / "gpt2")
    with pytest.raises(StageError, match="logits differ by"):
        export.run(ExportConfig(checkpoint="base"), context)


def test_a_tolerance_below_rounding_says_so(exported: Callable[..., Artifact]) -> None:
    with pytest.raises(StageError, match=r"float32 rounding, and a\s+tolerance of"):
        exported("llama", tolerance=1e-9)


def test_a_difference_is_found_wherever_it_is() -> None:
    reference = [torch.zeros(3, 5), torch.full((4, 5), 2.0)]
    other = [tensor.clone() for tensor in reference]
    other[1][2, 3] += 0.25
    found = gate.compare(reference, other)
    assert (found.sequence, found.position, found.token) == (1, 2, 3)
    assert (found.max_difference, found.largest_logit, found.lengths) == (0.25, 2.0, (3, 4))
    other[0][1, 1] = torch.nan
    found = gate.compare(reference, other)
    assert (found.max_difference, found.sequence, found.position) == (float("inf"), 0, 1)
    with pytest.raises(StageError, match="logits differ"):
        gate.require(found, 1e6, Path("x"))


# ---- checkpoints that can't be exported


@pytest.fixture
def spoiled(checkpoints: Path, tmp_path: Path) -> Path:
    """A copy of a checkpoint, to be damaged."""
    shutil.copytree(checkpoints / "llama", tmp_path / "spoiled")
    return tmp_path / "spoiled"


def refusal(folder: Path, stage_context: Contexts, **settings: Any) -> str:
    context = stage_context("hf", "export", base=folder)
    with pytest.raises(ToolkitError) as caught:
        export.run(ExportConfig(checkpoint="base", **settings), context)
    assert not (context.folder / "artifact").exists()
    return str(caught.value)


def test_an_iteration_that_is_not_there(spoiled: Path, stage_context: Contexts) -> None:
    text = refusal(spoiled, stage_context, iteration=8)
    assert "no iteration 8" in text
    assert "there: 7" in text


def test_a_shape_other_than_model_json_says(spoiled: Path, stage_context: Contexts) -> None:
    path = spoiled / "model.json"
    model = json.loads(path.read_text())
    path.write_text(json.dumps({**model, "ffn_hidden_size": 192, "add_qkv_bias": True}))
    text = refusal(spoiled, stage_context)
    assert "mlp.linear_fc1.weight of shape [4, 320, 64], not [4, 384, 64]" in text
    assert "no tensor decoder.layers.self_attention.linear_qkv.bias" in text


def test_weights_that_the_model_has_no_place_for(
    checkpoints: Path, spoiled: Path, stage_context: Contexts
) -> None:
    """A checkpoint with biases isn't quietly exported without them."""
    shutil.rmtree(spoiled / "iter_0000007")
    shutil.copytree(checkpoints / "llama-biased" / "iter_0000007", spoiled / "iter_0000007")
    assert "a tensor decoder.layers.mlp.linear_fc1.bias" in refusal(spoiled, stage_context)


def test_fewer_embeddings_than_the_vocabulary(spoiled: Path, stage_context: Contexts) -> None:
    path = spoiled / "model.json"
    wanted = {"vocab_size": 400, "padded_vocab_size": 512}
    path.write_text(json.dumps({**json.loads(path.read_text()), **wanted}))
    text = refusal(spoiled, stage_context)
    assert "embedding.word_embeddings.weight of shape [384, 64], not [512, 64]" in text


def test_a_tokenizer_with_more_tokens_than_embeddings(
    spoiled: Path, stage_context: Contexts
) -> None:
    path = spoiled / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "vocab_size": 290}))
    text = refusal(spoiled, stage_context)
    assert "ids go up to 299, the model has 290" in text


@pytest.mark.parametrize("broken", ["model.json", "tokenizer", "iter_0000007/metadata.json"])
def test_a_part_that_is_missing(broken: str, spoiled: Path, stage_context: Contexts) -> None:
    path = spoiled / broken
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert str(spoiled) in refusal(spoiled, stage_context)


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
def test_a_file_cut_short(name: str, spoiled: Path, stage_context: Contexts) -> None:
    path = spoiled / "iter_0000007" / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert str(spoiled) in refusal(spoiled, stage_context)


def test_keys_are_those_of_transformer_engine(checkpoints: Path) -> None:
    """GPUs train with the TransformerEngine spec, whose fused layers name a norm after the linear
    layer that follows; a checkpoint of the local spec must have the same names."""
    stored = dist_checkpointing.load_tensors_metadata(str(checkpoints / "llama" / "iter_0000007"))
    assert set(stored) == {
        "embedding.word_embeddings.weight",
        "decoder.layers.self_attention.linear_qkv.layer_norm_weight",
        "decoder.layers.self_attention.linear_qkv.weight",
        "decoder.layers.self_attention.linear_proj.weight",
        "decoder.layers.mlp.linear_fc1.layer_norm_weight",
        "decoder.layers.mlp.linear_fc1.weight",
        "decoder.layers.mlp.linear_fc2.weight",
        "decoder.final_layernorm.weight",
        "output_layer.weight",
    }


def test_the_families_are_tried_in_order() -> None:
    assert [family.architecture for family in export.FAMILIES] == [
        "LlamaForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
        "GPT2LMHeadModel",
    ]
    assert isinstance(export.FAMILIES[0], Llama)


def test_a_model_with_experts_is_refused() -> None:
    model = TrainedModel.model_validate(
        SHAPES["llama"] | {"num_moe_experts": 4, "vocab_size": 300, "padded_vocab_size": 384}
    )
    with pytest.raises(ToolkitError, match="the model has 4 experts"):
        family_of(model, [LLAMA, GPT2])
