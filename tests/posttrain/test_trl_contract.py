"""What ``trainer.py``, ``loop.py`` and ``chat_tokens.py`` rely on, of TRL and transformers.

When an upgrade breaks one of these, it says which part of the seam has to change.
"""

import inspect
import os
import subprocess
import sys
from tempfile import TemporaryDirectory
from typing import get_args

import torch
from datasets import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.utils.chat_template_utils import render_jinja_template
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer, pack_dataset
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from toolkit.posttrain import loop
from toolkit.posttrain import trainer as seam
from toolkit.posttrain.config import DPO_LOSSES, DpoConfig, SftConfig

ROWS = Dataset.from_dict({"input_ids": [[5, 6, 7], [8, 9]], "labels": [[-100, 6, 7], [-100, 9]]})


def test_every_argument_exists(stage_context) -> None:
    context = stage_context("chat", "sft")
    given = {"kind": "sft", "model": "base", "data": ["a.jsonl"], "packing": True}
    sft = seam.sft_arguments(SftConfig.model_validate(given), context, 64)
    assert isinstance(sft, SFTConfig)
    assert (sft.bf16, sft.use_cpu, sft.report_to, sft.max_length) == (False, True, [], 64)
    assert not getattr(sft, seam.CHECKPOINTING)
    given = {"kind": "dpo", "model": "base", "data": ["a.jsonl"], "loss_type": ["sigmoid", "sft"]}
    dpo = seam.dpo_arguments(DpoConfig.model_validate(given), context, 64)
    assert isinstance(dpo, DPOConfig)
    assert dpo.loss_type == ["sigmoid", "sft"]


def test_a_single_rank_is_no_distributed_run() -> None:
    """As the worker starts it: with LOCAL_RANK and a WORLD_SIZE of 1."""
    code = (
        "import sys, torch, pathlib;"
        "from toolkit.context import StageContext;"
        "from toolkit.posttrain import trainer as seam;"
        "from toolkit.posttrain.config import SftConfig;"
        "context = StageContext('chat', 'sft', pathlib.Path(sys.argv[1]), 'f');"
        "seam.forget_a_rank_of_one(context);"
        "config = SftConfig.model_validate({'model': 'm', 'data': ['d']});"
        "arguments = seam.sft_arguments(config, context, 64);"
        "print(arguments.parallel_mode.value, torch.distributed.is_initialized())"
    )
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": "29500"}
    with TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", code, folder],
            env={**os.environ, **ranks, "MASTER_ADDR": "127.0.0.1"},
            capture_output=True,
            text=True,
            check=True,
        )
    assert done.stdout.split() == ["not_parallel", "False"]


def test_warmup_below_one_is_a_share() -> None:
    arguments = TrainingArguments("unused", warmup_steps=0.1, use_cpu=True, report_to="none")
    assert arguments.get_warmup_steps(200) == 20


def test_every_dpo_loss_is_known_to_trl() -> None:
    source = inspect.getsource(DPOTrainer._compute_loss)
    assert [loss for loss in DPO_LOSSES if f'loss_type == "{loss}"' not in source] == []
    assert source.count("elif loss_type == ") + 1 == len(DPO_LOSSES)


def test_the_methods_that_are_replaced_are_still_called() -> None:
    assert "self._prepare_dataset(" in inspect.getsource(DPOTrainer.__init__)
    for trainer in (SFTTrainer, DPOTrainer):
        assert callable(trainer._send_telemetry)
        assert "self.create_model_card(" in inspect.getsource(trainer._save_checkpoint)
    assert "skip_prepare_dataset" in inspect.getsource(SFTTrainer.__init__)


def test_callbacks_have_the_events_in_use() -> None:
    for event in ("on_step_end", "on_log", "on_save", "on_evaluate"):
        assert getattr(loop.StageCallback, event) is not getattr(TrainerCallback, event)
    source = inspect.getsource(Trainer)
    save = source.index("self._save_checkpoint(model, trial)")
    assert source.index("self.callback_handler.on_save(", save) > save


def test_packs_keep_their_lengths_and_positions_start_anew() -> None:
    packs = pack_dataset(ROWS, 8, "bfd")
    assert packs[:] == {
        "input_ids": [[5, 6, 7, 8, 9]],
        "labels": [[-100, 6, 7, -100, 9]],
        "seq_lengths": [[3, 2]],
    }
    batch = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)([packs[0]])
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert "attention_mask" not in batch


def test_padding_never_decides_what_is_trained() -> None:
    batch = DataCollatorForLanguageModeling(pad_token_id=7)([ROWS[0], ROWS[1]])
    assert batch["labels"].tolist() == [[-100, 6, 7], [-100, 9, -100]]


def test_pairs_are_stacked_chosen_first() -> None:
    row = {"prompt_ids": [5, 6], "chosen_ids": [7], "rejected_ids": [8, 9]}
    batch = DataCollatorForPreference(pad_token_id=0)([row])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 0], [5, 6, 8, 9]]
    assert batch["completion_mask"].tolist() == [[0, 0, 1, 0], [0, 0, 1, 1]]
    assert torch.equal(batch["attention_mask"], torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]))


def test_templates_tell_what_the_assistant_writes_in_characters() -> None:
    template = "{{ 'Q' }}{% generation %}{{ messages[0].content }}{% endgeneration %}"
    texts, marks = render_jinja_template(
        conversations=[[{"role": "assistant", "content": "yes"}]],
        chat_template=template,
        return_assistant_tokens_mask=True,
    )
    assert (texts, [list(map(tuple, m)) for m in marks]) == (["Qyes"], [[(1, 4)]])


def test_the_settings_name_what_they_offer() -> None:
    schedulers = get_args(SftConfig.model_fields["lr_scheduler_type"].annotation)
    for name in schedulers:
        TrainingArguments("unused", lr_scheduler_type=name, use_cpu=True, report_to="none")
