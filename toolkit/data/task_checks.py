"""Whether the files of finished tasks are as they were written: hours may lie between."""

from __future__ import annotations

from collections.abc import Sequence

from toolkit.context import StageContext
from toolkit.data.tasks import TaskResult, checksum
from toolkit.errors import DataError


def verify(done: Sequence[TaskResult], context: StageContext) -> None:
    """Compare every file with its checksum.

    Raises:
        DataError: naming the first file that differs.
    """
    total = sum(path.stat().st_size for result in done for path in result.files.values()) / 1e6
    seen = 0.0
    for result in done:
        for name, recorded in result.checksums.items():
            path = result.path(name)
            if checksum(path) != recorded:
                raise DataError(
                    "the shard's checksum differs from the one recorded when it was written",
                    where=str(path),
                    hint=f"remove {result.folder} and run the same command again",
                )
            seen += path.stat().st_size / 1e6
            context.progress(seen, total, unit="MB verified")
