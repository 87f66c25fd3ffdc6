"""What a check found, and the first place where something is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "note", "fail", "skip"]
Advance = Callable[[int], None]
"""Told the bytes read since the last call, for a progress bar."""


@dataclass(frozen=True)
class Place:
    """Where something is wrong."""

    file: str
    offset: int | None = None
    """Byte in the file; None where a checksum only tells that there is such a byte."""
    document: int | None = None
    """Counted from 0."""
    expected: str = ""
    found: str = ""

    def __str__(self) -> str:
        parts = [self.file]
        if self.offset is not None:
            parts.append(f"byte {self.offset:,}")
        if self.document is not None:
            parts.append(f"document {self.document:,}")
        text = ", ".join(parts)
        return f"{text}: expected {self.expected}, found {self.found}" if self.expected else text


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    check: str
    status: Status
    detail: str
    place: Place | None = None
    """Of a failure."""


class Damage(Exception):
    """Raised within a check at the first thing that is wrong; never leaves this package."""

    def __init__(self, check: str, detail: str, place: Place) -> None:
        super().__init__(detail)
        self.finding = Finding(check, "fail", detail, place)
