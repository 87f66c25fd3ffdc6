"""The one module that knows ``transformers.Trainer`` and TRL; a test holds it to what they offer.

It turns settings into their arguments, ties their loop to the stage (metrics, progress, signals,
checkpoints), and keeps them quiet: no progress bars, no model cards, no telemetry.
"""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets
import peft
import torch
import transformers
from datasets import Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer, pack_dataset

from toolkit.artifacts import write_json
from toolkit.context import StageContext
from toolkit.errors import StageError, StageInterrupted, ToolkitError
from toolkit.posttrain import checkpoints
from toolkit.posttrain.config import DpoConfig, SftConfig
from toolkit.posttrain.settings import PeftSettings, TunedConfig
from toolkit.tracking import read_metrics

logger = logging.getLogger(__name__)

Metrics = dict[str, float]
Watch = Callable[[int, Mapping[str, float]], None]
"""Takes each logged step and its metrics, on every rank; may raise to end the training."""
COLLECTIVE_TIMEOUT = 7200
"""Seconds that a rank may be late at a collective: evaluation and saving take their time."""
BEFORE = "before.json"
RENAMED = {"learning_rate": "lr"}
NOT_LOGGED = ("runtime", "_per_second", "total_flos", "train_loss", "preparation_time")
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


class StageCallback(TrainerCallback):  # type: ignore[misc]  # transformers is not followed
    """Ties the Trainer's loop to the stage: metrics, progress, signals, whole checkpoints.

    Args:
        context: the stage.
        keep_last: checkpoints to keep.
        watch: sees each step's metrics.
    """

    def __init__(
        self,
        context: StageContext,
        keep_last: int,
        watch: Watch | None = None,
    ) -> None:
        self.context, self.keep_last, self.watch = context, keep_last, watch
        self.loss: float | None = None
        """The training loss logged last."""

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        """Show progress; when asked to stop, save and end."""
        if self.context.rank == 0:
            shown = {} if self.loss is None else {"loss": self.loss}
            self.context.progress(state.global_step, state.max_steps, unit="iterations", **shown)
        if _any_rank(self.context.stop.requested, args.device):
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False  # there may be little time left

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float],
        **_: Any,
    ) -> None:
        """Pass the metrics on.

        Raises:
            StageError: the loss is not finite.
        """
        metrics = _named(logs)
        loss = metrics.get("loss")
        if loss is not None and not math.isfinite(loss):
            raise StageError(
                f"the loss is {loss} at step {state.global_step}",
                hint="lower learning_rate, or set precision: fp32",
            )
        self.loss = self.loss if loss is None else loss
        if self.context.rank == 0 and metrics:
            self.context.tracker.log(state.global_step, metrics)
        if self.watch is not None:
            self.watch(state.global_step, metrics)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float],
        **_: Any,
    ) -> None:
        """Keep the metrics before the first step, for this attempt and later ones."""
        if self.context.rank == 0 and state.global_step == 0:
            write_json(self.context.work / BEFORE, _plain(metrics))

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        """Seal the checkpoint once every rank has written its part."""
        _wait_for_all()
        if self.context.rank == 0:
            folder = Path(args.output_dir)
            checkpoints.seal(folder / f"checkpoint-{state.global_step}")
            checkpoints.keep_last(folder, self.keep_last)


def _wait_for_all() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def _any_rank(flag: bool, device: torch.device) -> bool:
    """Whether any rank says so; all ranks must ask. A signal may reach them at different steps."""
    if not torch.distributed.is_initialized():
        return flag
    said = torch.tensor(int(flag), device=device)
    torch.distributed.all_reduce(said, op=torch.distributed.ReduceOp.MAX)
    return bool(said.item())


def _named(logs: Mapping[str, float]) -> Metrics:
    """The Trainer's metrics under the names of the other stages."""
    named = {}
    for key, value in logs.items():
        if not any(part in key for part in NOT_LOGGED):
            name = key.removeprefix("eval_")
            named[RENAMED.get(name, name) if name == key else f"validation_{name}"] = value
    return named if len(named) > 1 else {}  # the last row of a training has but the epoch


def train(trainer: Trainer, context: StageContext, watch: Watch | None = None) -> None:
    """Train to the end, from the last whole checkpoint on.

    Args:
        watch: the callback's, which is shown again what it saw up to that checkpoint.

    Raises:
        StageInterrupted: a signal came; a checkpoint of that step is saved.
    """
    found = checkpoints.latest(context.work)
    _wait_for_all()
    if context.rank == 0:
        checkpoints.clear_broken(context.work)
        context.tracker.rewind(checkpoints.step_of(found) if found else -1)
    _wait_for_all()
    if watch is not None:
        for row in read_metrics(context.folder):
            watch(row["step"], row)
    # Not by `evaluate`: called before `train`, it leaves the model without DDP, and every rank
    # trains on its own.
    trainer.args.eval_on_start = found is None and trainer.eval_dataset is not None
    if found:
        logger.info("going on from step %d", checkpoints.step_of(found))
    with context.stop.deferred():
        trainer.train(resume_from_checkpoint=str(found) if found else None)
    if context.stop.signal is not None:
        step = trainer.state.global_step
        raise StageInterrupted(
            f"stopped by {context.stop.signal.name} at step {step}, which is saved", saved=True
        )


def evaluate(trainer: Trainer) -> Metrics:
    """The metrics on the held-out rows after ``train``, such as ``loss``; none without rows."""
    return {} if trainer.eval_dataset is None else _plain(trainer.evaluate())


def before_training(context: StageContext) -> Metrics:
    """The metrics on the held-out rows before the first step; none without rows."""
    path = context.work / BEFORE
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def _plain(metrics: Mapping[str, float]) -> Metrics:
    """The metrics of an evaluation under their own names, without those of time and progress."""
    return {
        key.removeprefix("eval_"): value
        for key, value in metrics.items()
        if not any(part in key for part in (*NOT_LOGGED, "epoch", "num_tokens"))
    }
