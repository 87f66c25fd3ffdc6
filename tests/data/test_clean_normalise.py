"""Repairs of text are ftfy's, found by a quick look."""

from __future__ import annotations

import re
import unicodedata

import ftfy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.data.clean.normalise import Normaliser
from toolkit.data.clean.settings import NormalizeSettings

REPAIRS = NormalizeSettings(unicode=None, fix_line_breaks=False)
OF_FTFY = ftfy.TextFixerConfig(
    fix_latin_ligatures=False,
    fix_character_width=False,
    uncurl_quotes=False,
    fix_line_breaks=False,
    normalization=None,
    explain=False,
)
BROKEN = ["cafÃ©", "â€œquotedâ€\x9d", "Ã  la carte", "&eacute;&lt;", "<p>&amp;</p>", "l\x92eau"]
BROKEN += [
    "Â£5",
    "\x1b[31mred\x1b[0m",
    "a\x00b",
    "\ufeffmark",
    "ï»¿x",
    "naïve",
    "“fine”",
    "рус",
    "日本",
]
PIECES = st.sampled_from([*BROKEN, "plain text", "\n", " ", "œuvre", "Â "]) | st.text(max_size=8)


@settings(deadline=None, max_examples=400, derandomize=True)
@given(st.lists(PIECES, max_size=8).map(" ".join) | st.lists(PIECES, max_size=8).map("".join))
def test_repairs_are_those_of_ftfy(text: str) -> None:
    """But for control characters of which it knows no use: they go."""
    expected = re.sub("[\x80-\x9f]", "", ftfy.fix_text(text, OF_FTFY))
    assert Normaliser(REPAIRS)(text) == expected


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.lists(PIECES, max_size=8).map("".join))
def test_all_of_it_leaves_nfc_without_controls(text: str) -> None:
    clean = Normaliser(NormalizeSettings())(text)
    assert unicodedata.is_normalized("NFC", clean)
    assert not [c for c in clean if unicodedata.category(c) == "Cc" and c not in "\t\n"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\r\nb\rc\x0cd\u2028e", "a\nb\nc\nd\ne"),
        ("cafe\u0301", "café"),
        ("tab\tand\nline", "tab\tand\nline"),
        ("cafÃ© \x07\x1b[1mbold\x1b[0m", "café bold"),
        ("&eacute;\n<b>&eacute;", "é\n<b>&eacute;"),
    ],
)
def test_what_each_repair_does(text: str, expected: str) -> None:
    assert Normaliser(NormalizeSettings())(text) == expected


def test_repairs_can_be_turned_off() -> None:
    off = NormalizeSettings(
        fix_encoding=False,
        unescape_html=False,
        fix_line_breaks=False,
        remove_control_chars=False,
        unicode=None,
    )
    text = "cafÃ© &amp; \x07\r\ncafe\u0301"
    assert Normaliser(off)(text) == text
    assert Normaliser(NormalizeSettings(unescape_html=True))("<&amp;") == "<&"


def test_good_text_is_the_same_object() -> None:
    for text in ("all ASCII\n", "naïve “quotes” – fine"):
        assert Normaliser(NormalizeSettings())(text) is text
