"""A data stage's ``sources:`` as its context resolves them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from toolkit.artifacts import MANIFEST, read_artifact
from toolkit.context import StageContext
from toolkit.data.sources import Source, expand_each, is_named
from toolkit.errors import DataError

DOCUMENTS = "documents"
"""The folder of a ``documents`` artifact that holds its files."""


def expand_inputs(references: Sequence[str], context: StageContext) -> list[Source]:
    """What a stage's sources name; a ``documents`` artifact stands for its files.

    Raises:
        DataError: see ``expand`` and ``locate_source``.
    """
    return [source for found in expand_each_input(references, context) for source in found]


def expand_each_input(references: Sequence[str], context: StageContext) -> list[list[Source]]:
    """As ``expand_inputs``, apart for each reference.

    Raises:
        DataError: as ``expand_inputs``.
    """
    return expand_each([locate_source(reference, context) for reference in references])


def locate_source(reference: str, context: StageContext) -> str | Path:
    """A source as ``expand`` takes it: a path, or a name (``sample:``, ``hf:``, a URL) as it is.

    Raises:
        DataError: it is an artifact of another type than ``documents``.
    """
    return reference if is_named(reference) else documents_of(context.path(reference))


def documents_of(path: Path) -> Path:
    """The files of a ``documents`` artifact, or the path itself where it is no artifact.

    Raises:
        DataError: it is an artifact of another type.
    """
    if not (path / MANIFEST).is_file():
        return path
    made = read_artifact(path).type
    if made != "documents":
        raise DataError(
            f"the artifact is of type {made}; sources are documents, or files",
            where=str(path),
            hint="name the stage that made its documents, or files",
        )
    return path / DOCUMENTS
