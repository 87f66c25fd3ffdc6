"""What became of the rows of a data set: counted while they are tokenized, logged, recorded."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from toolkit.data.chat_tokens import PairTokens, Tokens
from toolkit.data.conversations import Tally
from toolkit.errors import DataError

logger = logging.getLogger(__name__)


@dataclass
class Counts:
    """Sums over the tokenized rows."""

    rows: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    """In the loss: what the assistant writes, or both answers of a pair."""
    longest: int = 0
    cut_rows: int = 0
    cut_tokens: int = 0
    answers: int = 0
    ended: int = 0
    """Answers whose end token is trained."""
    ends: Counter[int] = field(default_factory=Counter)
    """The end tokens, and how often each is trained."""

    def add_row(self, row: Tokens) -> None:
        """Count a row of supervised fine-tuning."""
        self.trained_tokens += row.trained
        self._add(len(row.input_ids), row.cut, row.ends)

    def add_pair(self, pair: PairTokens) -> None:
        """Count a preference pair; the prompt counts once, though it is read twice."""
        answers = len(pair.chosen_ids) + len(pair.rejected_ids)
        self.trained_tokens += answers
        self._add(len(pair.prompt_ids) + answers, pair.cut, pair.ends)

    def _add(self, length: int, cut: int, ends: Iterable[int | None]) -> None:
        self.rows += 1
        self.tokens += length
        self.longest = max(self.longest, length)
        self.cut_rows += cut > 0
        self.cut_tokens += cut
        for end in ends:
            self.answers += 1
            self.ended += end is not None
            self.ends.update([] if end is None else [end])

    def __add__(self, other: Counts) -> Counts:
        """The counts of both."""
        sums = {name: value + getattr(other, name) for name, value in vars(self).items()}
        return Counts(**sums | {"longest": max(self.longest, other.longest)})

    def as_account(self, tally: Tally) -> dict[str, Any]:
        """Plain values for ``info``: the rows read, dropped and used, and the sums."""
        sums = {k: v for k, v in vars(self).items() if k != "ends"}
        share = self.trained_tokens / self.tokens if self.tokens else 0.0
        return {**tally.as_info(), **sums, "trained_share": share, "ends": dict(self.ends)}


def require_learnable(
    account: dict[str, Any], what: str, source: str, limit: str = "max_length"
) -> None:
    """Refuse rows that teach nothing, or never how to stop.

    Args:
        account: from ``Counts.as_account``.
        what: the name of the rows, for the message.
        source: the files they come from.
        limit: the setting that rows are cut at.

    Raises:
        DataError: no row is left, no token is trained, or no answer's end token is.
    """
    if not account["rows"]:
        reasons = ", ".join(f"{n} x {reason}" for reason, n in account["dropped"].items())
        raise DataError(
            f"no row of the {what} is left: of {account['read']}, all were dropped ({reasons})",
            where=source,
        )
    if not account["trained_tokens"]:
        raise DataError(f"no token of the {what} is trained", where=source)
    if not account["ended"]:
        cut = f"; {account['cut_rows']} rows are cut at {limit}" if account["cut_rows"] else ""
        raise DataError(
            f"none of the {account['answers']} answers of the {what} has its end token in the "
            f"loss, so the model would never learn to stop{cut}",
            where=source,
            hint=f"raise {limit} if rows are cut; else the chat template must have the end token "
            "between {% generation %} and {% endgeneration %}",
        )


def log_account(account: dict[str, Any], what: str, limit: str = "max_length") -> None:
    """Say what is trained, before it is."""
    logger.info(
        "%s: %d of %d rows; %d tokens, %.1f %% of them trained; %d of %d answers with their end "
        "token; longest row %d tokens",
        what,
        account["rows"],
        account["read"],
        account["tokens"],
        100 * account["trained_share"],
        account["ended"],
        account["answers"],
        account["longest"],
    )
    for reason, count in account["dropped"].items():
        first = ", ".join(account["dropped_first"][reason])
        logger.warning("%s: %d rows dropped: %s (%s)", what, count, reason, first)
    if account["cut_rows"]:
        logger.warning(
            "%s: %d rows cut at %s, %d tokens lost",
            what,
            account["cut_rows"],
            limit,
            account["cut_tokens"],
        )
    if account.get("example"):
        logger.info("%s: the first row, what is trained in [[ ]]:\n%s", what, account["example"])
