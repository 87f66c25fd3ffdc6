"""The ``pack`` stage: conversations, or documents, to full rows that ``pretrain`` trains on."""

from __future__ import annotations

import functools
import logging
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.artifacts import Artifact
from toolkit.context import StageContext
from toolkit.data.indexed import token_dtype
from toolkit.data.pack.bestfit import pack
from toolkit.data.pack.config import TOKENIZE, PackConfig
from toolkit.data.pack.examples import documents_of, fit
from toolkit.data.pack.rows import mask_prefix, write_rows
from toolkit.data.pack.source import WHOLE, Source, chat_tasks, open_source, pad_token_id
from toolkit.data.tasks import run_tasks, worker_count
from toolkit.errors import DataError
from toolkit.stage import FINISH

logger = logging.getLogger(__name__)

NAME = "text_document"
ALGORITHM = "best-fit decreasing (Ding et al. 2024, arXiv:2404.10830)"


def run(config: PackConfig, context: StageContext) -> Artifact | None:
    """Tokenize what is text, pack it, and publish a ``dataset`` artifact.

    Returns:
        None in the phase that only tokenizes; else the artifact, whose ``info.packing`` has the
        row's length, the efficiency (examples' tokens / tokens of all rows) and what was lost.

    Raises:
        DataError: a row that can't be read, one that is too long (``overflow: error``), or
            nothing to learn from.
    """
    tasks = chat_tasks(config, context)
    if tasks and context.runs(TOKENIZE):
        workers = worker_count(config.resources, context)
        run_tasks(TOKENIZE, "toolkit.data.pack.chat:tokenize", tasks, context, workers=workers)
    if not context.runs(FINISH):
        return None
    built = context.building()
    try:
        source = open_source(config, context, tasks, built)
        info = _pack(source, config, context, built)
        artifact = context.publish(built, "dataset", info=info)
    except BaseException:
        shutil.rmtree(built, ignore_errors=True)
        raise
    shutil.rmtree(context.work / TOKENIZE, ignore_errors=True)
    return artifact


def _pack(source: Source, config: PackConfig, context: StageContext, built: Path) -> dict[str, Any]:
    pad_id = pad_token_id(config.pad_token, source.tokenizer)
    names = {part: str(Path(part) / NAME) for part in source.parts}
    sums: Counter[str] = Counter(lost_tokens=source.lost_tokens, overlong=source.overlong)
    for part, name in names.items():
        sums += _pack_part(source, part, built / name, pad_id, config, context)
    _say(sums, config)
    return {
        **source.info,
        "prefixes": list(names.values()),
        "masks": [str(mask_prefix(Path(name))) for name in names.values()],
        **({} if WHOLE in names else {"splits": {part: [name] for part, name in names.items()}}),
        "dtype": np.dtype(token_dtype(source.vocab_size)).name,
        "vocab_size": source.vocab_size,
        "counts": {"read": sums["read"], "written": sums["examples"], "tokens": sums["tokens"]},
        "packing": _account(sums, config, pad_id),
    }


def _pack_part(
    source: Source,
    part: str,
    target: Path,
    pad_id: int,
    config: PackConfig,
    context: StageContext,
) -> Counter[str]:
    found = documents_of(source.parts[part])
    if not len(found):
        raise DataError(f"nothing to pack{f' in the {part} part' if part else ''}: no tokens")
    fitted = fit(found, config.seq_length, config.overflow)
    packing = pack(fitted.examples.length, config.seq_length, context.seed)
    target.parent.mkdir(exist_ok=True)
    written = write_rows(
        fitted.examples,
        packing,
        config.seq_length,
        pad_id,
        target,
        source.vocab_size,
        functools.partial(context.progress, total=len(packing), unit="rows"),
    )
    if not written.trained_tokens:
        raise DataError(
            f"nothing to learn{f' in the {part} part' if part else ''}: no example has a token "
            "that others in front of it predict",
            hint="its documents have one token each, or their loss mask is 0 throughout",
        )
    return Counter(
        rows=written.rows,
        tokens=written.tokens,
        trained_tokens=written.trained_tokens,
        read=len(found),
        examples=len(fitted.examples),
        overlong=fitted.overlong,
        lost_tokens=fitted.lost_tokens,
    )


def _account(sums: Counter[str], config: PackConfig, pad_id: int) -> dict[str, Any]:
    space = sums["rows"] * config.seq_length
    counted = ("rows", "examples", "tokens", "trained_tokens", "lost_tokens", "overlong")
    return {
        "seq_length": config.seq_length,
        **{name: sums[name] for name in counted},
        "padding_tokens": space - sums["tokens"],
        "efficiency": round(sums["tokens"] / space, 6),
        "overflow": config.overflow,
        "pad_id": pad_id,
        "algorithm": ALGORITHM,
    }


def _say(sums: Counter[str], config: PackConfig) -> None:
    logger.info(
        "%s examples in %s rows of %s tokens: %.2f %% full, %s tokens lost",
        *(f"{n:,}" for n in (sums["examples"], sums["rows"], config.seq_length)),
        100 * sums["tokens"] / (sums["rows"] * config.seq_length),
        f"{sums['lost_tokens']:,}",
    )
    if sums["overlong"]:
        logger.warning(
            "%s examples were longer than a row (overflow: %s)",
            f"{sums['overlong']:,}",
            config.overflow,
        )
