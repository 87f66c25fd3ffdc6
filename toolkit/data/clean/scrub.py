"""Personal data out of texts: found by rule, replaced by tags or surrogates, counted by kind."""

from __future__ import annotations

import bisect
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from toolkit.data.clean import safe_harbor
from toolkit.data.clean.identifiers import FINDERS, Finder, Found, addresses, windows
from toolkit.data.clean.settings import PiiSettings
from toolkit.data.clean.surrogates import Surrogates
from toolkit.errors import DataError

SAFE_HARBOR_KINDS = ("email", "us-ssn", "phone", "ip")
"""What the preset takes of the finders that other settings have too."""
KEY_BYTES = 8
"""Of a secret, at least."""
TAG = re.compile(r"<[A-Z][A-Z-]*(?::\d+)?>")


class Scrubber:
    """Replaces personal data.

    Args:
        settings: what to look for, and what to put in its place.
        seed: of the surrogates' key, where the settings have none.

    Raises:
        DataError: the file of the key can't be read, or is too short.
    """

    def __init__(self, settings: PiiSettings, seed: int = 0) -> None:
        key = _secret(settings.surrogate_key_file) or f"seed {seed}".encode()
        self._surrogates = Surrogates(key) if settings.replace_with == "surrogate" else None
        kinds = {*settings.kinds, *(SAFE_HARBOR_KINDS if settings.preset else ())}
        finders = FINDERS | {"ip": addresses(settings.ip_public_only and not settings.preset)}
        order = sorted(kinds, key=[*FINDERS, "ip"].index)
        chosen = [(kind in NUMERIC, finders[kind]) for kind in order]
        if settings.preset:
            before, behind = safe_harbor.BEFORE, safe_harbor.BEHIND
            chosen = [*((False, f) for f in before), *chosen, *((False, f) for f in behind)]
        self._finders: Sequence[tuple[bool, Finder]] = chosen
        self._numeric = any(numeric for numeric, _ in chosen)
        self.counts: Counter[str] = Counter()
        """What was replaced so far, by kind."""

    def __call__(self, text: str) -> str:
        """The text without what was found; the same object where nothing was.

        Tags in the text stay as they are. With tags nothing more is found in what this gives: it
        looks again until that is so.
        """
        again = self._once(text)
        while again is not text and self._surrogates is None:
            text, again = again, self._once(again)
        return again

    def _once(self, text: str) -> str:
        found = self._find(text)
        if not found:
            return text
        parts, done = [], 0
        for one in found:
            self.counts[one.kind] += 1
            parts += [text[done : one.start], self._replacement(one, text)]
            done = one.end
        return "".join([*parts, text[done:]])

    def _find(self, text: str) -> list[Found]:
        """What the finders find, in order of place; of what overlaps the first finder's."""
        taken = [Found(*tag.span(), "") for tag in TAG.finditer(text)] if "<" in text else []
        everything, numbers = [(0, len(text))], list(windows(text)) if self._numeric else []
        for numeric, find in self._finders:
            places = numbers if numeric else everything
            for one in sorted(one for place in places for one in find(text, *place)):
                if one.start < one.end and _is_free(taken, one):
                    bisect.insort(taken, one)
        return [one for one in taken if one.kind]

    def _replacement(self, found: Found, text: str) -> str:
        if found.replacement is not None:
            return found.replacement
        if self._surrogates:
            return self._surrogates(found.kind, text[found.start : found.end])
        return f"<{found.kind.upper()}>"


NUMERIC = frozenset(FINDERS) - {"email", "it-codice-fiscale"}
"""Kinds that have many digits close together, so that the rest of a text needs no look."""


def _secret(file: str | None) -> bytes:
    if file is None:
        return b""
    try:
        key = Path(file).expanduser().read_bytes().strip()
    except OSError as error:
        raise DataError(
            f"the surrogates' key can't be read: {error.strerror}", where=file
        ) from error
    if len(key) < KEY_BYTES:
        raise DataError(
            f"the surrogates' key has {len(key)} bytes, fewer than {KEY_BYTES}",
            where=file,
            hint="openssl rand -hex 32 makes a good one",
        )
    return key


def _is_free(taken: Sequence[Found], one: Found) -> bool:
    """Whether nothing that was taken overlaps it."""
    index = bisect.bisect_left(taken, one.start, key=lambda found: found.start)
    before = taken[index - 1] if index else None
    behind = taken[index] if index < len(taken) else None
    return (before is None or before.end <= one.start) and (
        behind is None or one.end <= behind.start
    )
