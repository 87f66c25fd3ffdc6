"""The ``dpo`` stage: direct preference optimization by TRL, with a measure that can be trusted.

TRL's ``rewards/accuracies`` compares with the reference, so it says nothing about the model before
training. Here the share of held-out pairs whose chosen answer is the likelier one is measured too,
before and after.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from toolkit.artifacts import Artifact
from toolkit.context import StageContext
from toolkit.data.chat_account import Counts, log_account, require_learnable
from toolkit.data.chat_preferences import Preference
from toolkit.data.chat_tokens import ChatTokenizer, PairTokens
from toolkit.data.chat_turns import UnusableError, message
from toolkit.data.conversations import Tally, read_preferences
from toolkit.posttrain.collapse import CollapseAlarm
from toolkit.posttrain.config import DpoConfig
from toolkit.posttrain.loop import Metrics, StageCallback, before_training, evaluate, train
from toolkit.posttrain.rows import Account, Row, Rows, stored_rows
from toolkit.posttrain.trainer import (
    Dpo,
    dpo_arguments,
    forget_a_rank_of_one,
    make_trainer,
    quiet_libraries,
)
from toolkit.posttrain.tuning import (
    Start,
    load_reference,
    load_start,
    once,
    publish,
    resolved,
    split,
    warn_of_other_prompts,
)

logger = logging.getLogger(__name__)

COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")


def run(config: DpoConfig, context: StageContext) -> Artifact | None:
    """Align ``config.model`` to pairs; rank 0 returns the ``model`` or ``adapter`` artifact.

    Raises:
        ToolkitError: the model, the template or the data can't be trained with; says why.
        StageError: the chosen answers became unlikely, and ``on_collapse`` is ``stop``.
        StageInterrupted: a signal came, and a checkpoint was saved.
    """
    quiet_libraries()
    forget_a_rank_of_one(context)
    start = load_start(config, context)
    rows = _rows("train", config.data, config, context, start)
    held_out = (
        _rows("held-out", config.held_out, config, context, start) if config.held_out else None
    )
    train_rows, eval_rows = split(rows, held_out, config, context.seed)
    alarm = CollapseAlarm(
        config.beta,
        rows.account["mean_chosen_tokens"],
        config.collapse_threshold,
        stop=config.on_collapse == "stop",
    )
    trainer = make_trainer(
        Dpo,
        start.model,
        config.peft,
        ref_model=None if config.peft else load_reference(config, context),
        args=dpo_arguments(config, context, start.max_length),
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        processing_class=start.tokenizer,
        callbacks=[StageCallback(context, config.keep_last, watch=alarm)],
    )
    accuracy = once(context.work / "accuracy.json", lambda: preference_accuracy(trainer))
    train(trainer, context, alarm)
    before = before_training(context) | accuracy
    after = evaluate(trainer) | preference_accuracy(trainer)
    if after:
        logger.info(
            "held-out preference accuracy %.3f, before %.3f; against the reference %.3f",
            after["preference_accuracy"],
            before["preference_accuracy"],
            after["rewards/accuracies"],
        )
    info = {
        "data": rows.account,
        "held_out": {"rows": len(eval_rows or ()), "before": before, "after": after},
        "collapse": alarm.as_info(),
    }
    return publish(trainer, start, config, context, map(int, rows.account["ends"]), info)


def preference_accuracy(trainer: Any) -> Metrics:
    """Share of the held-out pairs whose chosen answer the model itself finds likelier.

    Returns:
        ``preference_accuracy`` by the answers' summed log-probabilities, and
        ``preference_accuracy_per_token`` by their means, which favours no length; nothing
        without held-out pairs.
    """
    if trainer.eval_dataset is None:
        return {}
    batch_size = trainer.args.per_device_eval_batch_size
    columns = trainer.eval_dataset.select_columns(list(COLUMNS))
    loader = DataLoader(columns, batch_size=batch_size, collate_fn=trainer.data_collator)
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    wins = torch.zeros(2, dtype=torch.float64)
    for batch in loader:
        inputs = trainer._prepare_inputs(batch)
        with torch.no_grad(), trainer.compute_loss_context_manager():
            sums, lengths = answer_logps(model, inputs)
        for column, scores in enumerate((sums, sums / lengths)):
            chosen, rejected = scores.chunk(2)  # the collator puts all chosen answers first
            wins[column] += (chosen > rejected).sum().item()
    by_sum, by_mean = (wins / len(columns)).tolist()
    return {"preference_accuracy": by_sum, "preference_accuracy_per_token": by_mean}


def answer_logps(model: Any, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed log-probability and length of the answers of a batch, both (2 x pairs,)."""
    out = model(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
    )
    answer = inputs["completion_mask"][:, 1:].bool()
    logps = torch.log_softmax(out.logits[:, :-1].float(), dim=-1)
    each = logps.gather(-1, inputs["input_ids"][:, 1:, None])[..., 0]
    return (each * answer).sum(-1), answer.sum(-1)


def _rows(
    name: str, sources: list[str], config: DpoConfig, context: StageContext, start: Start
) -> Rows:
    """The pairs of some sources as tokens, checked and accounted for.

    Raises:
        DataError: a row is malformed, or the rows can teach nothing.
    """
    chat = start.chat()

    def make(account: Account) -> Iterator[Row]:
        tally, counts, chosen = Tally(), Counts(), 0
        found = read_preferences(
            resolved(sources, context),
            config.format,
            config.columns,
            on_error=config.on_error,
            tally=tally,
        )
        for pair, tokens in _tokenized(found, chat, tally):
            if not counts.rows:
                account["example"] = _shown(chat, tokens)
                turns = (*pair.prompt, message("assistant", pair.chosen))
                warn_of_other_prompts(chat.prompt_as_generated(turns), chat)
            counts.add_pair(tokens)
            chosen += len(tokens.chosen_ids)
            yield {column: getattr(tokens, column) for column in COLUMNS}
        account |= counts.as_account(tally)
        require_learnable(account, f"{name} pairs", ", ".join(sources))
        account["mean_chosen_tokens"] = chosen / counts.rows

    rows = stored_rows(context, name, COLUMNS, make)
    log_account(rows.account, f"{name} pairs")
    return rows


def _tokenized(
    pairs: Iterator[Preference], chat: ChatTokenizer, tally: Tally
) -> Iterator[tuple[Preference, PairTokens]]:
    for pair in pairs:
        try:
            yield pair, chat.preference(pair)
        except UnusableError as reason:
            tally.drop(str(reason), pair.where)


def _shown(chat: ChatTokenizer, pair: PairTokens) -> str:
    prompt, chosen, rejected = (
        chat.tokenizer.decode(getattr(pair, column), skip_special_tokens=False)
        for column in COLUMNS
    )
    return f"{prompt}[[{chosen}]]\n    and, to be avoided:\n{prompt}[[{rejected}]]"
