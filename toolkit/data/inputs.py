"""A data stage's ``sources:`` as its context resolves them."""

from __future__ import annotations

from collections.abc import Sequence

from toolkit.context import StageContext
from toolkit.data.sources import Source, expand
from toolkit.stage import SAMPLE_PREFIX


def expand_inputs(references: Sequence[str], context: StageContext) -> list[Source]:
    """The files and samples that a stage's sources name.

    Raises:
        DataError: see ``expand``.
    """
    return expand([r if r.startswith(SAMPLE_PREFIX) else context.path(r) for r in references])
