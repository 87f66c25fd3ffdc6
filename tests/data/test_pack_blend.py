"""Blends: weights, links, what can't be mixed, and what Megatron-LM is told."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pack_datasets import documents, make_dataset, read_documents

from toolkit.artifacts import Artifact
from toolkit.context import StageContext
from toolkit.data.pack import blend as blend_stage
from toolkit.data.pack import split as split_stage
from toolkit.data.pack.config import BlendConfig, SplitConfig
from toolkit.data.pack.dataset import open_dataset
from toolkit.errors import DataError, ToolkitError

MakeContext = Callable[..., StageContext]
WEB, CODE = documents(300, 300, 1), documents(100, 300, 2)


@pytest.fixture
def parts(tmp_path: Path) -> dict[str, Path]:
    return {
        "web": make_dataset(tmp_path / "web", {"text": WEB}, 300),
        "code": make_dataset(tmp_path / "code", {"text": CODE}, 300),
    }


def run(context: StageContext, **chosen: Any) -> Artifact:
    raw = {"data": list(context.inputs), **chosen}
    return blend_stage.run(BlendConfig.model_validate(raw), context)


def test_a_blend_links_its_parts_and_has_their_weights(
    parts: dict[str, Path], stage_context: MakeContext
) -> None:
    artifact = run(stage_context("mix", "blend", **parts), weights=[3, 1])
    assert artifact.info["prefixes"] == ["00-web/text", "01-code/text"]
    assert artifact.info["weights"] == [0.75, 0.25]
    assert read_documents(artifact, "01-code/text") == CODE
    same = artifact.path("00-web/text.bin").stat(), (parts["web"] / "text.bin").stat()
    assert same[0].st_ino == same[1].st_ino
    told = artifact.path("data_path.txt").read_text().split()
    assert told == ["0.75", str(artifact.path("00-web/text")), "0.25",
                    str(artifact.path("01-code/text"))]  # fmt: skip
    assert artifact.info["counts"]["written"] == 400
    assert artifact.info["eod_id"] == 0 and artifact.info["vocab_size"] == 300
    artifact.verify()  # the checksums are those of the parts, which are not read again
    with (parts["web"] / "text.bin").open("r+b") as stream:
        stream.write(b"damaged")
    with pytest.raises(ToolkitError, match="checksum differs"):
        artifact.verify()


def test_weights_by_rule(parts: dict[str, Path], stage_context: MakeContext) -> None:
    tokens = [sum(map(len, WEB)), sum(map(len, CODE))]
    expected = {
        "tokens": [n / sum(tokens) for n in tokens],
        "documents": [0.75, 0.25],
        "temperature": [n**0.5 / sum(m**0.5 for m in tokens) for n in tokens],
    }
    for by, weights in expected.items():
        more = {"temperature": 2.0} if by == "temperature" else {}
        context = stage_context(f"mix-{by}", "blend", **parts)
        assert run(context, by=by, **more).info["weights"] == pytest.approx(weights)
    default = run(stage_context("mix", "blend", **parts))
    assert default.info["weights"] == pytest.approx(expected["tokens"])


def test_split_datasets_blend_part_by_part(
    parts: dict[str, Path], stage_context: MakeContext
) -> None:
    config = SplitConfig.model_validate({"data": "corpus", "split": "80,20"})
    cut = {
        name: split_stage.run(config, stage_context(name, "split", corpus=folder)).folder
        for name, folder in parts.items()
    }
    artifact = run(stage_context("mix", "blend", **cut), weights=[0.9, 0.1])
    found = open_dataset(artifact)
    assert found.splits is not None
    assert artifact.info["splits"]["valid"] == ["00-web/valid/text", "01-code/valid/text"]
    for own in found.splits.values():
        assert [found.weight_of(prefix) for prefix in own] == pytest.approx([0.9, 0.1])
    told = json.loads(artifact.path("per_split_data_args.json").read_text())
    assert told["valid"][0] == "0.9" and told["valid"][3].endswith("01-code/valid/text")


def test_a_blend_of_blends(parts: dict[str, Path], tmp_path: Path,
                           stage_context: MakeContext) -> None:  # fmt: skip
    inner = run(stage_context("inner", "blend", **parts), weights=[1, 3])
    other = make_dataset(tmp_path / "books", {"text": documents(10, 300, 3)}, 300)
    context = stage_context("outer", "blend", inner=inner.folder, books=other)
    assert run(context, weights=[0.5, 0.5]).info["weights"] == [0.125, 0.375, 0.5]


def test_packed_datasets_add_up(tmp_path: Path, stage_context: MakeContext) -> None:
    packed = {
        name: make_dataset(tmp_path / name, {"text": CODE}, 300, mask=True, packing={
            "seq_length": 64, "rows": rows, "tokens": 60 * rows, "pad_id": 1, "efficiency": 0.9375
        })
        for name, rows in (("a", 10), ("b", 20))
    }  # fmt: skip
    packed["b"].joinpath("artifact.json").write_text(
        packed["b"]
        .joinpath("artifact.json")
        .read_text()
        .replace('"tokens": 1200', '"tokens": 1240')
    )
    artifact = run(stage_context("mix", "blend", **packed), weights=[1, 1])
    assert artifact.info["masks"] == ["00-a/text_loss_mask", "01-b/text_loss_mask"]
    assert artifact.info["packing"] == {
        "seq_length": 64, "rows": 30, "tokens": 1840, "pad_id": 1, "efficiency": 0.958333
    }  # fmt: skip


def test_two_tokenizers_are_named(
    parts: dict[str, Path], tmp_path: Path, stage_context: MakeContext
) -> None:
    other = make_dataset(tmp_path / "other", {"text": CODE}, 300, tokenizer=" ")
    context = stage_context("mix", "blend", web=parts["web"], other=other)
    with pytest.raises(DataError) as caught:
        run(context, weights=[1, 1])
    for part in ("web (", "other (", "different tokenizers", str(other)):
        assert part in str(caught.value)


def test_what_is_not_alike(
    parts: dict[str, Path], tmp_path: Path, stage_context: MakeContext
) -> None:
    packed = make_dataset(
        tmp_path / "packed", {"text": CODE}, 300, mask=True, packing={"seq_length": 64}
    )
    with pytest.raises(DataError, match="differ in packing: not packed and 64"):
        run(stage_context("one", "blend", web=parts["web"], packed=packed))
    config = SplitConfig.model_validate({"data": "corpus", "split": "80,20"})
    cut = split_stage.run(config, stage_context("cut", "split", corpus=parts["code"])).folder
    with pytest.raises(DataError, match=r"cut/artifact is split, .*web is not"):
        run(stage_context("two", "blend", web=parts["web"], cut=cut))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": [1.0]}, "weights has 1 values for the 2 datasets"),
        ({"weights": [1.0, 1.0], "by": "tokens"}, "exclude each other"),
        ({"weights": [1.0, 0.0]}, "greater than 0"),
        ({"weights": [1.0, float("inf")]}, "finite"),
        ({"by": "temperature"}, "go together"),
        ({"temperature": 2.0}, "go together"),
        ({"data": ["web", "web"]}, "twice"),
        ({"data": ["web"]}, "at least 2"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BlendConfig.model_validate({"data": ["web", "code"], **settings})
