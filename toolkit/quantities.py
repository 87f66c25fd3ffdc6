"""Times and sizes as clusters write them: ``4:00:00``, ``2-00:00:00``, ``512G``."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

_TIME = re.compile(
    r"(?:(?P<days>\d+)-(?P<h>\d{1,2})(?::(?P<m>\d{1,2})(?::(?P<s>\d{1,2}))?)?"
    r"|(?P<hours>\d+):(?P<minutes>\d{2}):(?P<seconds>\d{2}))"
)
_MEMORY = re.compile(r"(?P<number>[1-9]\d*)(?P<unit>[MGT])")
_MEGABYTES = {"M": 1, "G": 1024, "T": 1024**2}
_WORD = re.compile(r"[^\s\"'\\#,%]+")


def minutes(text: str) -> int:
    """A time limit in minutes, rounded up as Slurm does.

    Slurm's forms that begin with minutes (``30``, ``30:00``) are refused: they are read as hours
    by as many people as not.

    Raises:
        ValueError: the text is no time limit, or is zero.
    """
    found = _TIME.fullmatch(text)
    if found is None:
        raise ValueError("must be a time limit such as 4:00:00 (hours) or 2-12:00:00 (days-hours)")
    days, hours, low, seconds = (
        int(found[long] or found[short] or 0)
        for long, short in (("days", "days"), ("hours", "h"), ("minutes", "m"), ("seconds", "s"))
    )
    whole = (days * 24 + hours) * 60 + low + (1 if seconds else 0)
    if whole == 0:
        raise ValueError("must be a time limit above zero")
    return whole


def megabytes(text: str) -> int:
    """A size of memory in megabytes of 2**20 bytes, as Slurm counts them.

    Raises:
        ValueError: the text is no size.
    """
    found = _MEMORY.fullmatch(text)
    if found is None:
        raise ValueError("must be a size such as 500M, 64G or 2T")
    return int(found["number"]) * _MEGABYTES[found["unit"]]


def time_text(whole: int) -> str:
    """Minutes as Slurm writes them: ``2-12:00:00``."""
    days, rest = divmod(whole, 24 * 60)
    clock = f"{rest // 60:02}:{rest % 60:02}:00"
    return f"{days}-{clock}" if days else clock


def _valid_time(text: str) -> str:
    minutes(text)
    return text


def _valid_memory(text: str) -> str:
    megabytes(text)
    return text


def _valid_word(text: str) -> str:
    if not _WORD.fullmatch(text):
        raise ValueError("must be a name, without spaces, quotes, commas, '\\', '#' and '%'")
    return text


TimeLimit = Annotated[str, AfterValidator(_valid_time)]
"""A time limit: ``4:00:00`` or ``2-12:00:00``."""
Memory = Annotated[str, AfterValidator(_valid_memory)]
"""A size of memory: ``64G``."""
Name = Annotated[str, AfterValidator(_valid_word)]
"""A scheduler's name for something: of a partition, an account, a node."""
