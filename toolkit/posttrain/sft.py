"""The ``sft`` stage: supervised fine-tuning by TRL, on tokens whose masks are checked here."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
from datasets import Dataset

from toolkit.artifacts import Artifact
from toolkit.context import StageContext
from toolkit.data.chat_account import Counts, log_account, require_learnable
from toolkit.data.chat_tokens import ChatTokenizer, Tokens
from toolkit.data.chat_turns import UnusableError
from toolkit.data.conversations import Conversation, Tally, read_conversations
from toolkit.errors import StageError
from toolkit.posttrain.config import SftConfig
from toolkit.posttrain.loop import StageCallback, before_training, evaluate, train
from toolkit.posttrain.rows import Account, Row, Rows, stored_rows
from toolkit.posttrain.trainer import (
    Sft,
    forget_a_rank_of_one,
    make_trainer,
    pack,
    quiet_libraries,
    sft_arguments,
)
from toolkit.posttrain.tuning import (
    Start,
    load_start,
    publish,
    resolved,
    split,
    warn_of_other_prompts,
)

logger = logging.getLogger(__name__)

COLUMNS = ("input_ids", "labels")
ISOLATION_TOLERANCE = {False: 1e-3, True: 0.05}
"""Largest difference of a row's loss alone and in a pack; in bf16 (True) kernels round more."""


def run(config: SftConfig, context: StageContext) -> Artifact | None:
    """Fine-tune ``config.model``; rank 0 returns the ``model`` or ``adapter`` artifact.

    Raises:
        ToolkitError: the model, the template or the data can't be trained with; says why.
        StageInterrupted: a signal came, and a checkpoint was saved.
    """
    quiet_libraries()
    forget_a_rank_of_one(context)
    start = load_start(config, context)
    rows = _rows("train", config.data, config, context, start)
    held_out = _rows("held-out", config.held_out, config, context, start) if config.held_out \
        else None  # fmt: skip
    train_rows, eval_rows = split(rows, held_out, config, context.seed)
    packed = _packed(train_rows, start, context) if config.packing else train_rows
    trainer = make_trainer(
        Sft,
        start.model,
        config.peft,
        args=sft_arguments(config, context, start.max_length),
        train_dataset=packed,
        eval_dataset=eval_rows,
        processing_class=start.tokenizer,
        callbacks=[StageCallback(context, config.keep_last)],
    )
    if config.packing:
        _require_isolation(trainer, train_rows)
    train(trainer, context)
    before, after = before_training(context), evaluate(trainer)
    if after:
        logger.info("held-out loss %.4f, before %.4f", after["loss"], before["loss"])
    info = {
        "data": rows.account,
        "held_out": _held_out(eval_rows, before, after),
        "packs": len(packed) if config.packing else None,
    }
    return publish(trainer, start, config, context, map(int, rows.account["ends"]), info)


def _packed(rows: Dataset, start: Start, context: StageContext) -> Dataset:
    file = context.work / "rows" / f"packed-{context.rank}.arrow"
    packs = pack(rows, start.max_length, file)
    logger.info("%d rows are packed into %d sequences", len(rows), len(packs))
    return packs


def _held_out(rows: Dataset | None, before: dict[str, float], after: dict[str, float]) \
        -> dict[str, Any]:  # fmt: skip
    count = 0 if rows is None else len(rows)
    return {"rows": count, "before": before, "after": after}


def _rows(
    name: str, sources: list[str], config: SftConfig, context: StageContext, start: Start
) -> Rows:
    """The rows of some sources as tokens, checked and accounted for.

    Raises:
        DataError: a row is malformed, or the rows can teach nothing.
    """
    chat = start.chat()

    def make(account: Account) -> Iterator[Row]:
        tally, counts = Tally(), Counts()
        found = read_conversations(
            resolved(sources, context),
            config.format,
            config.columns,
            on_error=config.on_error,
            tally=tally,
        )
        for row, tokens in _tokenized(found, chat, tally):
            if not counts.rows:
                account["example"] = chat.marked_text(tokens)
                if row.messages:
                    warn_of_other_prompts(chat.prompt_as_generated(_first_answer(row)), chat)
            counts.add_row(tokens)
            yield {"input_ids": tokens.input_ids, "labels": tokens.labels}
        account |= counts.as_account(tally)
        require_learnable(account, f"{name} rows", ", ".join(sources))

    rows = stored_rows(context, name, COLUMNS, make)
    log_account(rows.account, f"{name} rows")
    return rows


def _tokenized(
    rows: Iterator[Conversation], chat: ChatTokenizer, tally: Tally
) -> Iterator[tuple[Conversation, Tokens]]:
    for row in rows:
        try:
            yield row, chat.conversation(row)
        except UnusableError as reason:
            tally.drop(str(reason), row.where)


def _first_answer(row: Conversation) -> tuple[Any, ...]:
    """The turns up to the assistant's first."""
    roles = [turn["role"] for turn in row.messages]
    return row.messages[: roles.index("assistant") + 1]


def _require_isolation(trainer: Any, rows: Dataset) -> None:
    """Compare a row's loss alone and behind another row in a pack, on this model and device.

    Raises:
        StageError: they differ, so packed rows see one another.
    """
    if len(rows) < 2:
        return
    first, second = ({key: rows[n][key] for key in COLUMNS} for n in (0, 1))
    length = {n: len(row["input_ids"]) for n, row in enumerate((first, second))}
    pack = {key: first[key] + second[key] for key in COLUMNS}
    apart = _loss(trainer, {**second, "seq_lengths": [length[1]]}, length[1])
    packed = _loss(trainer, {**pack, "seq_lengths": [length[0], length[1]]}, length[1])
    tolerance = ISOLATION_TOLERANCE[trainer.args.bf16]
    if abs(apart - packed) > tolerance:
        raise StageError(
            f"packed rows see one another: a row's loss is {apart:.4f} alone, {packed:.4f} packed",
            hint="this model's attention doesn't keep packed rows apart; set packing: false",
        )


def _loss(trainer: Any, row: dict[str, list[int]], last: int) -> float:
    """The mean loss of the last tokens of one (packed) row."""
    batch = trainer._prepare_inputs(trainer.data_collator([row]))
    labels = batch.pop("labels")[0, -last:]
    model = trainer.model.eval()
    with torch.no_grad(), trainer.compute_loss_context_manager():
        logits = model(**batch, use_cache=False).logits[0, -last:].float()
    return float(torch.nn.functional.cross_entropy(logits[:-1], labels[1:]))
