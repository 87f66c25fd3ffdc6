"""Where sentences end, by rules: for data that is tokenized sentence by sentence (BERT's).

A full stop ends a sentence where white space and something that can begin one follow, and the word
before it is no abbreviation, initial or number of a list. A blank line and an item of a list always
end one, and so do the full stops of scripts without capitals. Nothing is learnt from the text
(as nltk's Punkt does) and nothing is lost: white space goes with the sentence after it, so that
byte-level tokens of the sentences, put together, are those of the document.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_CLOSE = r"[)\]}\"'\u201d\u2019\u00bb\u300d\u300f\uff09\u3011\u300b]*"
_FULL = r"\u3002\uff61\uff01\uff1f\u0964\u0965\u06d4\u061f"
"""Full stops that need no white space after them: CJK, Devanagari, Urdu, Arabic."""
_ITEM = r"(?:[-*\u2022\u2023\u25aa]|\(?\d{1,3}[.)])[^\S\n]+\S"
_CANDIDATE = re.compile(
    # One set to look for comes first: re finds its characters at the speed of C. What follows takes
    # a run of stops or blanks whole, so that a megabyte of them costs no more than other text.
    rf"[\n.!?\u2026{_FULL}](?:"
    r"(?<=[.!?\u2026])(?<![.!?\u2026]{2})(?P<more>[.!?\u2026]*+)"
    # After these white space follows, and no small letter after that.
    rf"{_CLOSE}+(?=\s++(?P<marks>[^\w\s]*)(?![a-z])(?P<word>\w*))"
    # The end of a paragraph, and the line break before an item of a list.
    rf"|(?<=\n)(?P<line>)(?:[^\S\n]*+\n\s*+|(?=[^\S\n]*+{_ITEM}))"
    rf"|(?<=[{_FULL}])[{_FULL}]*+{_CLOSE}+)"
)
_ACRONYM = re.compile(r"(?:[^\W\d_]\.)+[^\W\d_]")
_ENUMERATOR = re.compile(r"\(?(?:\d{1,3}(?:\.\d{1,3})*|[A-Za-z]|[ivxIVX]{1,5})")
_LONGEST = 18
"""Characters before a full stop that are looked at: no abbreviation is longer."""
_OPENING = "([{\"'\u201c\u2018\u00ab\u300c\u300e\uff08\u00bf\u00a1"
_QUOTES = "\"'\u201d\u2019\u00bb"
_NOT_FIRST = frozenset("-\u2013\u2014,;:%&+=)]}.!?|/~")
"""What a sentence doesn't begin with."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_NEVER_LAST = _words(
    "mr mrs ms mx messrs mme mlle dr drs prof rev hon pres gov sen rep sens reps gen adm capt cpt"
    " cmdr col lt sgt maj brig cpl pvt supt insp fr sr.a mt ft vs cf viz e.g i.e eg ie al et resp"
    " approx ca c.f fig figs eq eqs eqn tab vol vols ed eds trans dept univ assn bldg op cit ibid"
    " ph sect chap ver incl excl esp orig abbr def ex var subj sub tel"
)
"""Abbreviations with more to come: titles, references, Latin."""
_BEFORE_NUMBER = _words(
    "no nos nr art p pp par para sec ch app v ver n jan feb mar apr jun jul aug sep sept oct nov"
    " dec mon tue tues wed thu thur thurs fri sat sun ext in lb lbs min max st rt hwy pt ser issue"
)
"""Abbreviations that a number completes; without one after them they are words of their own."""
_MAYBE_LAST = _words(
    "inc ltd co corp llc plc bros jr sr esq st ave blvd rd a.m p.m am.p ph.d m.d b.a m.a b.sc m.sc"
    " d.c u.s u.k u.n e.u u.s.a jan feb apr jun jul aug sept oct nov dec misc est gmbh s.a"
)
"""Abbreviations with which a sentence may end: then a word follows that often begins one."""
_STARTERS = _words(
    "The A An In It He She They We I You This That These Those There Here But And Or So Yet However"
    " If When While After Before As At On For From With By To Of Its His Her Their Our My Your What"
    " Who Why How Where Which Then Thus Also No Not Yes Some Many Most All Each Every Both Another"
    " Other Others One Two Once Since Until Although Though Because Despite Even Only Such Today"
    " Yesterday Now Later Meanwhile Moreover Furthermore Therefore Instead Please Let Do Does Did"
    " Is Are Was Were Can Could Will Would Should May Might Has Have Had See Note During Under Over"
    " It's I'm He's She's We're They're That's There's Don't"
)


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """The sentences of a text as ``(start, stop)``, which leave nothing out; none if it is empty.

    White space belongs to the sentence after it, and at the end to the last one.
    """
    ends = []
    for match in _CANDIDATE.finditer(text):
        more, marks, word, line = match.group("more", "marks", "word", "line")
        if line is not None:
            ends.append(match.start())
        elif more is None or _is_end(text, match, more, marks, word):
            ends.append(match.end())
    return list(_between(ends, text))


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, which joined give it back."""
    return [text[start:stop] for start, stop in sentence_spans(text)]


def _between(ends: Iterable[int], text: str) -> Iterator[tuple[int, int]]:
    start, last = 0, len(text.rstrip())
    for end in ends:
        if start < end < last and not text[start:end].isspace():
            yield start, end
            start = end
    if text:
        yield start, len(text)


def _is_end(text: str, match: re.Match[str], more: str, marks: str, word: str) -> bool:
    """Whether a sentence ends at a full stop, and ``more`` of them, before marks and a word."""
    if not _can_begin(marks, word):
        return False
    at, end = match.span()
    if marks[:1] in ("(", "[") and text[end - 1] in _QUOTES:
        # The source of a quotation, not a sentence in brackets.
        return False
    if more or text[at] != ".":
        return True
    before = text[max(0, at - _LONGEST) : at].rsplit(None, 1)
    if not before or text[at - 1].isspace():
        return True
    return _is_last(before[-1].lstrip(_OPENING), marks, word, text, at)


def _can_begin(marks: str, word: str) -> bool:
    """Whether punctuation and a word may begin a sentence."""
    if marks and marks.lstrip(_OPENING)[:1] in _NOT_FIRST:
        return False
    return not word or not word[0].islower()


def _is_last(last: str, marks: str, word: str, text: str, at: int) -> bool:
    """Whether the word before a full stop may be the last of its sentence."""
    small = last.lower()
    if small in _BEFORE_NUMBER and word[:1].isdigit():
        return False
    if small in _NEVER_LAST:
        return False
    is_initial = len(last) == 1 and last.isalpha() and last != "I"
    if _ENUMERATOR.fullmatch(last) and _opens_line(text, at - len(last)):
        return False
    if small in _MAYBE_LAST or is_initial or _ACRONYM.fullmatch(last):
        return word in _STARTERS or (bool(marks) and marks[-1] in '"\u201c')
    return True


def _opens_line(text: str, at: int) -> bool:
    """Whether nothing but white space stands before a place in its line."""
    before = text[max(0, at - 40) : at].rstrip(" \t(")
    return not before or before[-1] == "\n"
