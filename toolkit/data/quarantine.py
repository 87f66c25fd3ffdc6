"""Where bad records go when they must not stop the work."""

from __future__ import annotations

import base64
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import orjson

from toolkit.data.readers import BadRecord
from toolkit.errors import DataError


def stop_at(bad: BadRecord) -> None:
    """Raise a DataError for a bad record, which says how a stage goes on without it."""
    raise DataError(
        bad.reason,
        where=bad.where,
        hint="mend it; or, with on_error: quarantine, bad records are written aside and counted",
    )


class Quarantine:
    """Writes bad records aside, one JSON object a line; the file appears with the first.

    ``{"where": "a.jsonl:17", "reason": "invalid JSON: ...", "raw": "{\\"text\\": "}``; what is no
    UTF-8 stands as ``raw_base64`` instead.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream: BinaryIO | None = None

    def __call__(self, bad: BadRecord) -> None:
        """Write one aside."""
        if self._stream is None:
            self._stream = self._path.open("wb")
        row = {"where": bad.where, "reason": bad.reason}
        try:
            row["raw"] = bad.raw.decode("utf-8")
        except UnicodeDecodeError:
            row["raw_base64"] = base64.b64encode(bad.raw).decode("ascii")
        self._stream.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._stream is not None:
            self._stream.close()
