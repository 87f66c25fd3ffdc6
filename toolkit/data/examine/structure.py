"""The structure of a dataset: all that the two files say twice must agree."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from toolkit.artifacts import sha256
from toolkit.data.examine.findings import Damage, Finding, Place
from toolkit.data.examine.index_checks import (
    Index,
    check_boundaries,
    check_header,
    check_lengths,
    check_modes,
    check_offsets,
)
from toolkit.data.examine.locate import Dataset
from toolkit.data.examine.subset_checks import check_subset
from toolkit.data.indexed import IndexedReader, bin_path, idx_path, whole_of
from toolkit.errors import DataError


@dataclass(frozen=True)
class Examination:
    """All that was found of one dataset, or of the other files of an artifact."""

    name: str
    findings: tuple[Finding, ...]
    size: int = 0
    """Bytes of the ``.bin``."""
    seconds: float = 0.0

    @property
    def failure(self) -> Finding | None:
        """The first failure; what comes behind it in the files was not looked at."""
        return next((f for f in self.findings if f.status == "fail"), None)


def collect(dataset: Dataset, checks: Iterator[Finding]) -> Examination:
    """Findings up to the first damage."""
    started, found = time.monotonic(), []
    try:
        for finding in checks:
            found.append(finding)
            if finding.status == "fail":
                break
    except Damage as damage:
        found.append(damage.finding)
    except OSError as error:
        place = Place(Path(error.filename or dataset.prefix).name)
        found.append(Finding("files", "fail", f"can't be read: {error.strerror}", place))
    data = bin_path(dataset.prefix)
    size = data.stat().st_size if data.is_file() else 0
    return Examination(dataset.name, tuple(found), size, time.monotonic() - started)


def open_sound(dataset: Dataset) -> IndexedReader:
    """Open a dataset whose index agrees with itself, so that whatever it says can be read.

    Raises:
        DataError: a file is missing or damaged, with the first bad offset.
    """
    try:
        for _ in check_structure(dataset, subset=False):
            pass
    except Damage as damage:
        finding = damage.finding
        hint = "`toolkit data doctor` says more"
        raise DataError(finding.detail, where=str(finding.place), hint=hint) from damage
    return IndexedReader(dataset.prefix)


def check_structure(dataset: Dataset, subset: bool) -> Generator[Finding, None, tuple[Index, bool]]:
    """Everything that the index must agree with; returns it, and whether it is contiguous."""
    _both_files(dataset.prefix)
    index, finding = check_header(dataset.prefix)
    yield finding
    yield check_lengths(index)
    contiguous = True
    try:
        offsets = check_offsets(index)
    except Damage:
        if not (subset or _may_be_subset(dataset)):
            raise
        offsets, contiguous = check_subset(index), False
    yield offsets
    yield check_boundaries(index)
    if modes := check_modes(index):
        yield modes
    return index, contiguous


def _both_files(prefix: Path) -> None:
    data, index = bin_path(prefix), idx_path(prefix)
    for path, other in ((index, data), (data, index)):
        if not path.is_file():
            where = Place(path.name)
            raise Damage("files", f"no such file; {other.name} is there without it", where)


def _may_be_subset(dataset: Dataset) -> bool:
    """Whether an index with gaps is what was meant: it shares its ``.bin``, or was recorded so."""
    if whole_of(dataset.prefix) is not None:
        return True
    entry = dataset.entry(idx_path(dataset.prefix))
    made = dataset.artifact.kind if dataset.artifact else ""
    return (
        made != "tokenize"
        and entry is not None
        and entry.sha256 == sha256(idx_path(dataset.prefix))
    )
