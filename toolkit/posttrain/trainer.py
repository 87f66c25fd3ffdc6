"""The one module that knows TRL, and the arguments of its trainers; a test holds it to them.

It turns settings into arguments and keeps the libraries quiet: no progress bars, no model cards,
no telemetry.
"""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import Any

import datasets
import peft
import torch
import transformers
from datasets import Dataset
from transformers import TrainingArguments
from transformers.trainer_callback import PrinterCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer, pack_dataset

from toolkit.context import StageContext
from toolkit.errors import ToolkitError
from toolkit.posttrain.config import DpoConfig, SftConfig
from toolkit.posttrain.settings import PeftSettings, TunedConfig

logger = logging.getLogger(__name__)

COLLECTIVE_TIMEOUT = 7200
"""Seconds that a rank may be late at a collective: evaluation and saving take their time."""
CHECKPOINTING = "activation_checkpointing"
if CHECKPOINTING not in TrainingArguments.__dataclass_fields__:  # its name before transformers 5.2x
    CHECKPOINTING = "gradient_checkpointing"


class Sft(SFTTrainer):  # type: ignore[misc]  # TRL has no types
    """TRL's trainer for supervised fine-tuning, without its side effects."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write no README.md into checkpoints."""

    def _send_telemetry(self) -> None:
        pass


class Dpo(DPOTrainer):  # type: ignore[misc]  # TRL has no types
    """TRL's trainer for preferences, on rows that are tokenized already."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write no README.md into checkpoints."""

    def _send_telemetry(self) -> None:
        pass

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        """Take the rows as they are: ``prompt_ids``, ``chosen_ids``, ``rejected_ids``."""
        return dataset


def quiet_libraries() -> None:
    """No progress bars, and log records that reach the stage's log in its own form."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_default_handler()
    transformers.utils.logging.enable_propagation()
    logging.captureWarnings(True)
    # These libraries warn of one another's deprecations, which no setting of ours can mend.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|trl|peft")


def forget_a_rank_of_one(context: StageContext) -> None:
    """Let accelerate see a single process where there is one.

    It takes ``LOCAL_RANK`` for a distributed run, and DDP around one rank costs a copy of the
    gradients. With several GPUs in sight the rank stays: it says which of them to use.
    """
    one_device = context.device == "cpu" or torch.cuda.device_count() == 1
    if context.world_size == 1 and one_device:
        os.environ.pop("LOCAL_RANK", None)


def uses_bf16(config: TunedConfig, context: StageContext) -> bool:
    """Whether the forward passes are in bfloat16."""
    return config.precision == "bf16" or (config.precision == "auto" and context.device != "cpu")


def common_arguments(config: TunedConfig, context: StageContext) -> dict[str, Any]:
    """The arguments that SFT and DPO share, for this device."""
    cpu = context.device == "cpu"
    checkpointing = config.gradient_checkpointing
    return {
        "output_dir": str(context.work),
        "seed": context.seed,
        "data_seed": context.seed,
        "learning_rate": config.learning_rate,
        "per_device_train_batch_size": config.per_device_train_batch_size,
        "per_device_eval_batch_size": config.per_device_eval_batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "num_train_epochs": config.num_train_epochs,
        "max_steps": config.max_steps or -1,
        "warmup_steps": config.warmup_steps,
        "lr_scheduler_type": config.lr_scheduler_type,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "bf16": uses_bf16(config, context),
        CHECKPOINTING: not cpu if checkpointing is None else checkpointing,
        "use_cpu": cpu,
        "ddp_backend": "gloo" if cpu and context.world_size > 1 else None,
        "ddp_timeout": COLLECTIVE_TIMEOUT,
        "ddp_find_unused_parameters": False,
        "dataloader_pin_memory": not cpu,
        "logging_steps": config.logging_steps,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "eval_strategy": "steps" if config.eval_steps else "no",
        "eval_steps": config.eval_steps,
        "save_strategy": "steps",
        "save_steps": config.save_steps,
        "report_to": "none",
        "disable_tqdm": True,
    }


def sft_arguments(config: SftConfig, context: StageContext, max_length: int) -> SFTConfig:
    """TRL's arguments for supervised fine-tuning on rows that are tokenized already."""
    return SFTConfig(
        **common_arguments(config, context),
        max_length=max_length,
        packing=config.packing,
        packing_strategy="bfd",  # the strategy that keeps rows apart; `wrapped` does not
        eval_packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        loss_type=config.loss_type,
    )


def pack(rows: Dataset, max_length: int, file: Path) -> Dataset:
    """Rows packed into sequences of ``max_length``, best fit decreasing, whole and kept apart.

    Args:
        file: where the packs are stored, and found again by a later attempt.
    """
    return pack_dataset(rows, max_length, "bfd", {"cache_file_name": str(file)})


def dpo_arguments(config: DpoConfig, context: StageContext, max_length: int) -> DPOConfig:
    """TRL's arguments for preference optimization."""
    return DPOConfig(
        **common_arguments(config, context),
        max_length=max_length,
        loss_type=list(config.loss_type),
        loss_weights=config.loss_weights,
        beta=config.beta,
        label_smoothing=config.label_smoothing,
    )


def lora_config(settings: PeftSettings | None) -> peft.LoraConfig | None:
    """PEFT's configuration of an adapter, or None where all weights are trained."""
    if settings is None:
        return None
    return peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=settings.target_modules,
        use_rslora=settings.use_rslora,
        use_dora=settings.use_dora,
    )


def make_trainer(kind: type[Sft | Dpo], model: Any, settings: PeftSettings | None, **rest: Any) \
        -> Any:  # fmt: skip
    """Build a trainer that logs through its callbacks alone.

    Raises:
        ToolkitError: the adapter names layers that the model doesn't have.
    """
    try:
        trainer = kind(model=model, peft_config=lora_config(settings), **rest)
    except ValueError as error:
        if "arget modules" not in str(error):
            raise
        linear = {n.split(".")[-1] for n, m in model.named_modules() if type(m) is torch.nn.Linear}
        raise ToolkitError(
            f"peft.target_modules doesn't fit the model: {error}",
            hint=f"its linear layers are: {', '.join(sorted(linear - {'lm_head'}))}",
        ) from error
    trainer.remove_callback(PrinterCallback)
    return trainer
