"""Filters of length, URL, regular expression, and functions of the user's own."""

from __future__ import annotations

import gzip
import importlib
import re
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from toolkit.data.clean.batch import Batch, Reasons
from toolkit.data.clean.filter_settings import (
    FunctionSettings,
    LengthSettings,
    RegexSettings,
    UrlSettings,
)
from toolkit.errors import DataError, ToolkitError

SYMBOLS = re.compile(r"[^a-zA-Z0-9]+")


class Length:
    """Bounds on characters and on what stands between blanks."""

    def __init__(self, settings: LengthSettings) -> None:
        self._settings = settings

    def __call__(self, batch: Batch) -> Reasons:
        """Why each document goes, or None."""
        return [self._reason(text) for text in batch.texts]

    def _reason(self, text: str) -> str | None:
        settings = self._settings
        reason = _outside(len(text), settings.min_characters, settings.max_characters, "characters")
        if reason or (settings.min_words is None and settings.max_words is None):
            return reason
        return _outside(len(text.split()), settings.min_words, settings.max_words, "words")


def _outside(size: int, low: int | None, high: int | None, unit: str) -> str | None:
    if low is not None and size < low:
        return f"too_few_{unit}"
    return f"too_many_{unit}" if high is not None and size > high else None


class Regex:
    """A regular expression that is found, or is not."""

    def __init__(self, settings: RegexSettings) -> None:
        self._search = re.compile(settings.regex_exp).search
        self._drop = settings.action == "drop"

    def __call__(self, batch: Batch) -> Reasons:
        """Why each document goes, or None."""
        reason = "found" if self._drop else "not_found"
        found = (self._search(text) is not None for text in batch.texts)
        return [reason if hit == self._drop else None for hit in found]


class Url:
    """Lists of domains, URLs and words: ``datatrove/pipeline/filters/url_filter.py``.

    A domain on the list drops every host below it, without datatrove's list of public suffixes:
    ``example.co.uk`` and ``a.b.example.co.uk`` alike. Domains are compared in lower case.

    Raises:
        DataError: a list can't be read.
    """

    def __init__(self, settings: UrlSettings) -> None:
        self._settings = settings
        self._domains = {
            domain.lower().strip(".")
            for domain in _listed(settings.extra_domains, settings.domain_files)
        }
        self._urls = frozenset(_listed(settings.extra_urls, settings.url_files))
        banned = _listed(settings.banned_words, settings.word_files)
        self._words = frozenset(map(_normal, banned)) - {""}
        self._soft = frozenset(map(_normal, settings.soft_banned_words)) - {""}
        subwords = sorted({_normal(word) for word in settings.banned_subwords} - {""})
        self._subwords = re.compile("|".join(subwords)) if subwords else None

    def __call__(self, batch: Batch) -> Reasons:
        """Why each document goes, or None.

        Raises:
            DataError: a document has no URL, and ``missing`` is ``error``.
        """
        return [self._reason(metadata) for metadata in batch.metadata]

    def _reason(self, metadata: dict[str, Any]) -> str | None:
        key = self._settings.url_key
        url = metadata.get(key)
        if type(url) is str and url:
            return self._listed(url)
        if self._settings.missing == "error":
            raise DataError(
                f"the document has no URL: there is no text under {key!r}",
                where=_place(metadata),
                hint="set url_key, or missing: keep or drop",
            )
        return "no_url" if self._settings.missing == "drop" else None

    def _listed(self, url: str) -> str | None:
        host = _host(url)
        labels = host.split(".")
        if host in self._domains:
            return "domain"
        if any(".".join(labels[i:]) in self._domains for i in range(1, len(labels))):
            return "subdomain"
        if url in self._urls:
            return "url"
        words = set(SYMBOLS.split(url))
        if not self._words.isdisjoint(words):
            return "hard_blacklisted"
        if len(self._soft & words) >= self._settings.soft_word_threshold:
            return "soft_blacklisted"
        if self._subwords and self._subwords.search(_normal(url)):
            return "blacklisted_subword"
        return None


def _normal(text: str) -> str:
    return SYMBOLS.sub("", text).lower()


def _host(url: str) -> str:
    try:
        return (urlsplit(url if "//" in url else f"//{url}").hostname or "").strip(".")
    except ValueError:
        return ""


def _listed(given: Sequence[str], files: Sequence[str]) -> list[str]:
    found = list(given)
    for name in files:
        try:
            raw = Path(name).expanduser().read_bytes()
            text = (gzip.decompress(raw) if name.endswith(".gz") else raw).decode("utf-8")
        except (OSError, EOFError, UnicodeDecodeError) as error:
            raise DataError(f"the list can't be read: {error}", where=name) from error
        lines = (line.strip() for line in text.splitlines())
        found += [line for line in lines if line and not line.startswith("#")]
    return found


class Function:
    """A function of the user's own: see ``FunctionSettings``.

    Raises:
        ToolkitError: it can't be imported.
    """

    def __init__(self, settings: FunctionSettings) -> None:
        self._name = settings.function
        self._function = _resolve(settings.function)

    def __call__(self, batch: Batch) -> Reasons:
        """Why each document goes, or None.

        Raises:
            ToolkitError: the function fails, or gives something else than it should.
        """
        return [
            self._reason(text, metadata)
            for text, metadata in zip(batch.texts, batch.metadata, strict=True)
        ]

    def _reason(self, text: str, metadata: dict[str, Any]) -> str | None:
        try:
            result = self._function(text, dict(metadata))
        except Exception as error:
            raise ToolkitError(
                f"the filter function {self._name} failed on this document: {error!r}"
                f"{_line(error)}",
                where=_place(metadata),
            ) from error
        if result is None or result is True:
            return None
        if result is False:
            return "dropped"
        if isinstance(result, str) and result:
            return result
        raise ToolkitError(
            f"the filter function {self._name} gave {result!r:.80} for this document",
            where=_place(metadata),
            hint="it must give True or None (keep), False (drop), or a reason to drop",
        )


def _place(metadata: dict[str, Any]) -> str | None:
    """Where a document stands, and its id, as far as they are known."""
    where, name = getattr(metadata, "where", None), metadata.get("id")
    if where is None or name in (None, where):
        return where or (name and f"id {name}")
    return f"{where} (id {name})"


def _line(error: Exception) -> str:
    """The line of the user's code that raised it."""
    frames = traceback.extract_tb(error.__traceback__)[1:]
    return f", at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""


def _resolve(name: str) -> Callable[[str, dict[str, Any]], object]:
    module, _, attribute = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # the module is the user's: it may raise anything
        raise ToolkitError(
            f"the filter function can't be imported: {type(error).__name__}: {error}",
            where=name,
            hint="put its folder on PYTHONPATH, on every machine of the run",
        ) from error
    if not callable(found):
        raise ToolkitError(f"this is of type {type(found).__name__}, not a function", where=name)
    return found  # type: ignore[no-any-return]
