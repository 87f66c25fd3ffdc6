"""What a user can get wrong, and what he is told; nothing is lost or half-made."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pretrain_runs import (
    LLAMA,
    QUICK,
    VOCAB,
    learnable,
    make_dataset,
    make_stage,
    make_tokenizer,
    write_pair,
)

from toolkit.artifacts import Artifact
from toolkit.context import StageContext
from toolkit.errors import DataError, ExitCode, StageError, ToolkitError
from toolkit.megatron import checkpoint, step
from toolkit.megatron.config import PretrainConfig
from toolkit.megatron.train import run
from toolkit.tracking import read_metrics

MakeContext = Callable[..., StageContext]


def pretrain(
    context: StageContext, data: str, model: dict[str, Any] | None = None, **settings: Any
) -> Artifact | None:
    """Run the stage in this process, on one rank."""
    defaults = {**QUICK, "train_iters": 4, "eval_iters": 0}
    raw = {"data": data, "model": {**LLAMA, **(model or {})}, **defaults, **settings}
    return run(PretrainConfig.model_validate(raw), context)


def refused(kind: type[ToolkitError], *parts: str, make: Callable[[], object]) -> ToolkitError:
    """The error that ``make`` raises; it must say all the parts."""
    with pytest.raises(kind) as caught:
        make()
    for part in parts:
        assert part in str(caught.value)
    return caught.value


def test_ranks_that_hold_no_whole_copies(stage_context: MakeContext, dataset: Path) -> None:
    context = stage_context("base", "pretrain", corpus=dataset)
    context.world_size = 3
    refused(
        ToolkitError,
        "3 ranks are not a multiple of the 2 that hold one copy of the model",
        make=lambda: pretrain(context, "corpus", parallel={"tensor_model_parallel_size": 2}),
    )


def test_settings_that_nobody_checked(stage_context: MakeContext, dataset: Path) -> None:
    """A run that went around ``toolkit check`` ends with megatron-core's own words."""
    context = stage_context("base", "pretrain", corpus=dataset)
    refused(
        ToolkitError,
        "megatron-core refuses these settings: Using recompute_granularity: full",
        make=lambda: pretrain(context, "corpus", recompute_granularity="full"),
    )


def test_a_batch_that_does_not_divide(stage_context: MakeContext, dataset: Path) -> None:
    context = stage_context("base", "pretrain", corpus=dataset)
    context.world_size = 3
    refused(
        ToolkitError,
        "global_batch_size 8 is not a multiple of 6",
        make=lambda: pretrain(context, "corpus"),
    )


def test_a_truncated_bin(stage_context: MakeContext, tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "corpus")
    tokens = data / "text_document.bin"
    tokens.write_bytes(tokens.read_bytes()[:-100])
    context = stage_context("base", "pretrain", corpus=data)
    error = refused(DataError, "100 missing", make=lambda: pretrain(context, "corpus"))
    assert error.where == str(tokens)
    assert not (context.folder / "artifact").exists()


def test_a_missing_dataset(stage_context: MakeContext, tmp_path: Path) -> None:
    context = stage_context("base", "pretrain")
    refused(
        DataError,
        "no dataset here",
        "nothing.idx",
        make=lambda: pretrain(context, str(tmp_path / "nothing")),
    )


def test_a_bare_pair_without_its_tokenizer(stage_context: MakeContext, tmp_path: Path) -> None:
    prefix = write_pair(tmp_path / "bare" / "text_document", learnable(2000), 4)
    context = stage_context("base", "pretrain")
    refused(DataError, "set `tokenizer:`", make=lambda: pretrain(context, str(prefix)))


def test_ids_of_a_bare_pair_outside_the_tokenizer(
    stage_context: MakeContext, tmp_path: Path
) -> None:
    stream = learnable(2000)
    stream[1234] = 777
    prefix = write_pair(tmp_path / "bare" / "text_document", stream, 4, vocab=1000)
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    context = stage_context("base", "pretrain")
    refused(
        DataError,
        "token id 777 at position 1,234 is outside the vocabulary of 300",
        make=lambda: pretrain(context, str(prefix), tokenizer=str(tokenizer)),
    )


def test_ids_of_an_overwritten_artifact(stage_context: MakeContext, tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "corpus")
    tokens = np.memmap(data / "text_document.bin", np.uint16, mode="r+")
    tokens[:] = VOCAB
    tokens.flush()
    context = stage_context("base", "pretrain", corpus=data)
    refused(
        DataError,
        "token id 300",
        "outside the vocabulary of 300",
        make=lambda: pretrain(context, "corpus"),
    )


def test_another_tokenizer_than_the_tokens(
    stage_context: MakeContext, tmp_path: Path, dataset: Path
) -> None:
    other = make_tokenizer(tmp_path / "other", VOCAB + 1)
    context = stage_context("base", "pretrain", corpus=dataset)
    refused(
        DataError,
        "another tokenizer",
        make=lambda: pretrain(context, "corpus", tokenizer=str(other)),
    )


def test_less_than_one_sample(stage_context: MakeContext, tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "corpus", count=30, documents=1)
    context = stage_context("base", "pretrain", corpus=data)
    refused(
        DataError,
        "29 training tokens are less than one sample of 32 + 1",
        make=lambda: pretrain(context, "corpus"),
    )


def test_resuming_with_a_model_of_another_shape(stage_context: MakeContext, dataset: Path) -> None:
    context = stage_context("base", "pretrain", corpus=dataset)
    pretrain(context, "corpus")
    before = checkpoint.iterations(context.work / "checkpoints")
    error = refused(
        ToolkitError,
        "hidden_size: 32 here, 64 in the checkpoint",
        "num_layers: 2 here, 4 in the checkpoint",
        make=lambda: pretrain(context, "corpus", {"hidden_size": 32, "num_layers": 2}),
    )
    assert "ffn_hidden_size" not in str(error)
    assert checkpoint.iterations(context.work / "checkpoints") == before


def test_starting_from_a_checkpoint(
    stage_context: MakeContext, tmp_path: Path, dataset: Path
) -> None:
    first = stage_context("first", "pretrain", corpus=dataset)
    published = pretrain(first, "corpus", eval_iters=2, train_iters=8)
    assert published is not None
    start = str(published.folder)
    second = stage_context("second", "pretrain", corpus=dataset)
    again = pretrain(second, "corpus", load=start, eval_iters=2)
    assert again is not None
    assert again.info["initial_validation_loss"] == published.info["validation_loss"]

    refused(
        ToolkitError,
        "rotary_base: 500 here, 10000 in the checkpoint",
        make=lambda: pretrain(
            stage_context("third", "pretrain", corpus=dataset),
            "corpus",
            {"rotary_base": 500},
            load=start,
        ),
    )
    prefix = write_pair(tmp_path / "bare" / "text_document", learnable(2000), 4)
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    content = (tokenizer / "tokenizer.json").read_text()
    (tokenizer / "tokenizer.json").write_text(content + " ")
    refused(
        ToolkitError,
        "another tokenizer than the data's",
        make=lambda: pretrain(
            stage_context("fourth", "pretrain"),
            str(prefix),
            tokenizer=str(tokenizer),
            load=start,
        ),
    )


def test_a_full_disk_leaves_the_older_checkpoint(tmp_path: Path, dataset: Path) -> None:
    stage = make_stage(tmp_path / "base", dataset, train_iters=6, save_interval=3)
    stage.environment["DIE_BEFORE"] = "toolkit.megatron.state:save:2"
    assert stage.run() != ExitCode.OK
    stage.environment = {"FILE_LIMIT": "200000"}
    assert stage.run() == ExitCode.STAGE_FAILED
    assert "the checkpoint could not be written, with" in stage.log()
    assert "MiB free: rank 0: " in stage.log()
    assert checkpoint.iterations(stage.checkpoints) == [3]
    assert not (stage.folder / "artifact").exists()
    stage.environment = {}
    assert stage.run() == ExitCode.OK
    assert checkpoint.iterations(stage.checkpoints) == [3, 6]


def spoil(
    monkeypatch: pytest.MonkeyPatch, calls: set[int], how: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """Change the loss of some microbatches, counted from 1."""
    original, seen = step.masked_loss, [0]

    def spoilt(mask: torch.Tensor, losses: torch.Tensor, non_loss_data: bool = False) -> Any:
        seen[0] += 1
        return original(mask, how(losses) if seen[0] in calls else losses, non_loss_data)

    monkeypatch.setattr(step, "masked_loss", spoilt)


def not_a_number(losses: torch.Tensor) -> torch.Tensor:
    return losses * float("nan")


def finite_with_a_bad_gradient(losses: torch.Tensor) -> torch.Tensor:
    return losses + (losses * 0.0).sqrt()  # 0 x infinity, backward


@pytest.mark.parametrize("how", [not_a_number, finite_with_a_bad_gradient])
def test_a_bad_batch_is_skipped(
    stage_context: MakeContext,
    dataset: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    spoil(monkeypatch, {6}, how)  # 4 microbatches a step: the second step's second
    context = stage_context("base", "pretrain", corpus=dataset)
    published = pretrain(context, "corpus", on_nan="skip", lr_warmup_iters=0)
    assert published is not None
    assert published.info["skipped_iters"] == 1
    assert published.info["consumed_samples"] == 32
    rows = [row for row in read_metrics(context.folder) if "loss" in row]
    assert [row["loss"] is None for row in rows] == [False, True, False, False]
    assert [row["grad_norm"] is None for row in rows] == [False, True, False, False]
    assert rows[1]["lr"] == rows[0]["lr"]  # the schedule did not go on
    assert rows[3]["loss"] < rows[0]["loss"]


@pytest.mark.parametrize("how", [not_a_number, finite_with_a_bad_gradient])
def test_a_bad_batch_stops_the_run(
    stage_context: MakeContext,
    dataset: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    spoil(monkeypatch, {6}, how)
    context = stage_context("base", "pretrain", corpus=dataset)
    refused(
        StageError,
        "iteration 2",
        "nan",
        "on_nan: skip",
        make=lambda: pretrain(context, "corpus", save_interval=1),
    )
    assert checkpoint.iterations(context.work / "checkpoints") == [1]


def test_only_so_many_batches_in_a_row_are_skipped(
    stage_context: MakeContext, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, set(range(1, 100)), not_a_number)
    context = stage_context("base", "pretrain", corpus=dataset)
    refused(
        StageError,
        "iteration 3: 3 batches in a row were skipped",
        make=lambda: pretrain(context, "corpus", on_nan="skip", max_skipped_in_a_row=3),
    )
