"""What Megatron's schedules ask of a step, as they ask it."""

import inspect
from typing import Any

import pytest
import torch
from megatron.core.models.gpt import GPTModel
from pretrain_runs import LLAMA, VOCAB

from toolkit.megatron.batches import Batch
from toolkit.megatron.config import ModelConfig, ParallelConfig
from toolkit.megatron.distributed import process_groups
from toolkit.megatron.model import build_model
from toolkit.megatron.step import forward_step


def test_a_schedule_that_mixes_passes_gets_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """``combined_forward_backward_step`` asks with ``return_schedule_plan``; streams need a GPU."""
    asked: list[dict[str, Any]] = []

    def plan(model: GPTModel, **given: Any) -> str:
        asked.append(given)
        return "the plan"

    signature = inspect.signature(GPTModel.build_schedule_plan)
    monkeypatch.setattr(GPTModel, "build_schedule_plan", plan)
    tokens = torch.arange(32).view(1, 32)
    batch = Batch(tokens, tokens, torch.ones(1, 32), tokens)
    with process_groups(ParallelConfig()):
        model = build_model(ModelConfig.model_validate(LLAMA), vocab_size=VOCAB)
        found, loss = forward_step(iter([batch]), model, return_schedule_plan=True)
        plain, _ = forward_step(iter([batch]), model)
    assert found == "the plan"
    bound = signature.bind(model, **asked[0]).arguments
    assert torch.equal(bound["input_ids"], tokens)
    assert torch.equal(bound["labels"], tokens)
    assert loss(torch.ones(1, 32))[1] == 32
    assert plain.shape == (1, 32)
