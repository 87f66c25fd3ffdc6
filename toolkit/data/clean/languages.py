"""Which language a document is in, by py3langid or a fastText model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from toolkit.data.clean.batch import Batch, Reasons
from toolkit.data.clean.filter_settings import LanguageSettings
from toolkit.errors import DataError, ToolkitError

Scores = Callable[[str], Mapping[str, float]]
"""The probability of each language that a model knows; the best one may stand alone."""


class Language:
    """Notes ``language`` and ``language_score`` of each document, and drops those of others.

    With ``languages`` a document stays if one of them has at least the threshold's probability
    (as ``datatrove/pipeline/filters/language_filter.py``), without it if the best one has.

    Raises:
        ToolkitError: the model or its package is missing, or it knows no such language.
    """

    def __init__(self, settings: LanguageSettings) -> None:
        self._settings = settings
        path = settings.model_path
        self._scores, known = _fasttext(path) if path else _langid()
        unknown = sorted(set(settings.languages or ()) - known)
        if unknown:
            raise ToolkitError(
                f"the language model doesn't know {', '.join(unknown)}",
                where=path or "py3langid",
                hint=f"it knows {', '.join(sorted(known)[:200])}",
            )

    def __call__(self, batch: Batch) -> Reasons:
        """Why each document goes, or None; what was found goes into the metadata."""
        return [
            self._reason(text, metadata)
            for text, metadata in zip(batch.texts, batch.metadata, strict=True)
        ]

    def _reason(self, text: str, metadata: dict[str, Any]) -> str | None:
        settings = self._settings
        scores = self._scores(text[: settings.max_characters])
        best = max(scores, key=scores.__getitem__)
        metadata["language"], metadata["language_score"] = best, round(scores[best], 4)
        if settings.label_only:
            return None
        wanted = settings.languages or [best]
        good = any(scores.get(one, 0.0) > settings.language_threshold for one in wanted)
        return None if good else "other_language" if best not in wanted else "low_score"


@functools.cache
def _langid() -> tuple[Scores, frozenset[str]]:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ModuleNotFoundError as error:
        raise ToolkitError(
            "the language filter needs the package py3langid, which is not installed here",
            hint="pip install 'py3langid>=0.4,<0.5', or set model_path to a fastText model",
        ) from error
    model = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    return lambda text: dict(model.rank(text)), frozenset(model.labels)


@functools.cache
def _fasttext(path: str) -> tuple[Scores, frozenset[str]]:
    try:
        from fasttext.FastText import _FastText
    except ModuleNotFoundError as error:
        raise ToolkitError(
            "model_path needs the package fasttext, which is not installed here",
            where=path,
            hint="pip install fasttext-numpy2-wheel, or leave model_path out to use py3langid",
        ) from error
    file = Path(path).expanduser()
    if not file.is_file():
        raise DataError("there is no such fastText model", where=path)
    try:
        model = _FastText(str(file))
    except ValueError as error:
        raise DataError(f"not a fastText model: {error}", where=path) from error

    def scores(text: str) -> Mapping[str, float]:
        labels, values = model.predict(text.replace("\n", " "), k=-1)
        return {label.removeprefix("__label__"): float(v) for label, v in zip(labels, values)}  # noqa: B905

    return scores, frozenset(label.removeprefix("__label__") for label in model.get_labels())
