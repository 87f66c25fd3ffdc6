"""Repairs of text: what ftfy does, where it is needed, and Unicode's composed form."""

from __future__ import annotations

import re
import unicodedata

import ftfy
from ftfy.badness import is_bad

from toolkit.data.clean.settings import NormalizeSettings

LINE_BREAKS = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
CONTROLS = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\u206a-\u206f\ufeff\ufff9-\ufffc]")
"""Control characters but tab and what ends lines; marks of byte order and of annotation."""
ESCAPES = re.compile("\x1b\\[[0-9;]*[a-zA-Z]")
"""Terminals' colours."""
ORDINARY = bytes({*range(0x20, 0x7F), *range(0x80, 0x100)} | set(b"\t\n"))
SUSPICIOUS = re.compile(
    "[^\x00-\x7f]{2}|[ÂÃŒœ\x80-\x9f\u2028\u2029\u206a-\u206f\ufeff\ufff9-\ufffc\ud800-\udfff]"
)
"""What text has in which ftfy finds anything wrong, or that has other control characters."""
C1_OR_SURROGATE = re.compile("[\x80-\x9f\ud800-\udfff]")


class Normaliser:
    """Repairs text; ftfy's slow path sees only lines that a quick look finds suspicious.

    Encodings and entities are repaired line by line, as ``ftfy.fix_text`` does it; lines that are
    ASCII, or that ftfy's own measure finds unsuspicious, it would leave as they are.
    """

    def __init__(self, settings: NormalizeSettings) -> None:
        self._settings = settings
        self._config = ftfy.TextFixerConfig(
            unescape_html=False,
            fix_latin_ligatures=False,
            fix_character_width=False,
            uncurl_quotes=False,
            fix_line_breaks=False,
            remove_terminal_escapes=False,
            remove_control_chars=False,
            normalization=None,
            explain=False,
        )

    def __call__(self, text: str) -> str:
        """The text in good order; the same object where nothing was wrong."""
        settings = self._settings
        if settings.unescape_html and "&" in text:
            text = self._unescape(text)
        suspicious = not text.isascii() and SUSPICIOUS.search(text) is not None
        if suspicious and settings.fix_encoding:
            text = "\n".join(map(self._fix_line, text.split("\n")))
        if suspicious or text.encode("utf-8", "surrogatepass").translate(None, ORDINARY):
            text = self._without_controls(text)
        form = settings.unicode
        if form and not text.isascii() and not unicodedata.is_normalized(form, text):
            text = unicodedata.normalize(form, text)
        return text

    def _without_controls(self, text: str) -> str:
        if self._settings.remove_control_chars:
            text = ESCAPES.sub("", text)
        if self._settings.fix_line_breaks:
            text = LINE_BREAKS.sub("\n", text)
        return CONTROLS.sub("", text) if self._settings.remove_control_chars else text

    def _unescape(self, text: str) -> str:
        """Entities to characters; ``auto``: in the lines before the first that has a ``<``."""
        end = len(text)
        if self._settings.unescape_html == "auto" and (tag := text.find("<")) >= 0:
            end = text.rfind("\n", 0, tag) + 1
        head = text[:end]
        return ftfy.fixes.unescape_html(head) + text[end:] if "&" in head else text

    def _fix_line(self, line: str) -> str:
        if line.isascii() or not (C1_OR_SURROGATE.search(line) or is_bad(line)):
            return line
        fixed: str = ftfy.fix_text(line, self._config)
        return fixed
