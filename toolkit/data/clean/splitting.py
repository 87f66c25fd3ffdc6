"""Words as datatrove counts them: what spaCy's blank English pipeline makes of a chunk.

A chunk is what stands between blanks; its words depend on nothing around it, so that each distinct
chunk of a corpus is split once (``words.py``). The rules are those of spaCy 3.8 for English
(``spacy/lang/punctuation.py``, ``lang/en/tokenizer_exceptions.py``), written anew: letters are
Python's, and of the emoticons only the shapes are known.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterable, Sequence

from toolkit.data.clean.english import JOINED, JOINED_OR_STARTS, JOINED_STARTS, SPECIAL, listed

CASED = (*range(0x530), *range(0x1E00, 0x1F00))
"""Where the cased letters of Latin, Greek and Cyrillic are."""
PICTURES = (*range(0xA0, 0x3400), *range(0xFF00, 0x10000), *range(0x1F000, 0x1FB00))


def _ranges(codes: Iterable[int]) -> str:
    """Code points as the inside of a character class: ranges, which ``re`` looks up fast."""
    ordered = enumerate(sorted(codes))
    groups = ([code for _, code in g] for _, g in itertools.groupby(ordered, lambda e: e[1] - e[0]))
    return "".join(f"\\U{group[0]:08x}-\\U{group[-1]:08x}" for group in groups)


_upper = re.escape("".join(c for c in map(chr, CASED) if c.isupper()))
_lower = re.escape("".join(c for c in map(chr, CASED) if c.islower()))
_alpha = r"[^\W\d_]"
_alpha_lower = rf"[^\W\d_{_upper}]"
_alpha_upper = rf"[^\W\d_{_lower}]"
_icons = _ranges(code for code in PICTURES if unicodedata.category(chr(code)) == "So")
_icon = f"[{_icons}]"

_PUNCTUATION = "…,:;!?¿؟¡()[]{}<>_#*&。？！，、；：～·।،۔؛٪"
_QUOTES = "'\"”“`‘´’‚,„»«「」『』（）〔〕【】《》〈〉⟦⟧"
_CURRENCY = "$£€¥฿₽﷼₴₠₡₢₣₤₥₦₧₨₩₪₫₭₮₯₰₱₲₳₵₶₷₸₹₺₻₼₾₿"
_UNITS = listed(
    "km km² km³ m m² m³ dm dm² dm³ cm cm² cm³ mm mm² mm³ ha µm nm yd in ft kg g mg µg t lb oz m/s "
    "km/h kmh mph hPa Pa mbar mb MB kb KB gb GB tb TB T G M K %"
)
_punctuation, _quotes, _currency = (
    f"[{re.escape(characters)}]" for characters in (_PUNCTUATION, _QUOTES, _CURRENCY)
)
_units = "|".join(map(re.escape, _UNITS))

PREFIX = re.compile(
    rf"[§%=—–]|\+(?![0-9])|{_punctuation}|\.\.+|{_quotes}|(?:US|[CA])\$|{_currency}|{_icon}"
)
ICON = re.compile(_icon)
UNIT = re.compile(rf"[0-9]((?:US|[CA])\$|{_currency}|{_units})\Z")
_ALWAYS_PREFIX = _PUNCTUATION + _QUOTES + _CURRENCY + "§%=—–"
_ALWAYS_SUFFIX = _PUNCTUATION + _QUOTES + "—–"
PREFIXES, SUFFIXES = frozenset(_ALWAYS_PREFIX), frozenset(_ALWAYS_SUFFIX)
UNIT_ENDS = frozenset(_CURRENCY + "".join(unit[-1] for unit in _UNITS))
LONGEST_UNIT = 5
PEELED_FIRST = PEELED_LAST = frozenset(".+")
NEVER_JOINED = frozenset(["", ",", ";", "!", "?"])
"""What may stand behind a word without making a special one with it."""
BEFORE_STOP = frozenset(_PUNCTUATION + _QUOTES + "0123456789%²-+|")
INFIX = re.compile(
    rf"\.\.+|…|{_icon}|(?<=[0-9])[+\-*^](?=[0-9-])"
    rf"|(?:(?<={_alpha_lower})|(?<={_quotes}))\.(?:(?={_alpha_upper})|(?={_quotes}))"
    rf"|(?<={_alpha}),(?={_alpha})"
    rf"|(?:(?<={_alpha})|(?<=[0-9]))(?:-|–|—|--|---|——|~|[:<>=/])(?={_alpha})"
)
ASCII_INFIX = re.compile(
    r"\.\.+|\.(?<=[a-z'\"`]\.)(?=[A-Z'\"`])|,(?<=[A-Za-z],)(?=[A-Za-z])"
    r"|[+*^-](?<=[0-9].)(?=[0-9-])|[~:<>=/-](?<=[A-Za-z0-9].)(?=[A-Za-z])"
    r"|--(?<=[A-Za-z0-9]--)(?=[A-Za-z])|---(?<=[A-Za-z0-9]---)(?=[A-Za-z])"
)
"""``INFIX`` for chunks of ASCII: the same, and much faster."""
MAYBE_INFIX = re.compile(rf"[.,+*^~:<>=/…–—{_icons}-]")
_label = r"(?:[A-Za-z0-9¡-\uffff](?:[A-Za-z0-9¡-\uffff_-]{0,62}[A-Za-z0-9¡-\uffff])?\.)+"
_private = r"(?!(?:10|127)(?:\.\d{1,3}){3}|(?:169\.254|192\.168)(?:\.\d{1,3}){2})"
URL = re.compile(
    rf"(?:[\w+.-]{{2,}}://)?(?:\S+@)?(?:{_label}{_alpha_lower}{{2,63}}"
    rf"|{_private}(?:[1-9]\d?|1\d\d|2[01]\d|22[0-3])(?:\.(?:1?\d{{1,2}}|2[0-4]\d|25[0-5])){{3}})"
    r"(?::\d{2,5})?(?:[/?#]\S*)?\Z"
)
"""A chunk that stays whole: an address, and whatever looks like one (``setup.py``)."""
MAYBE_URL = re.compile(r"[^.]\.[^.]")


def split_chunk(chunk: str) -> Sequence[str]:
    """The words of a chunk, which has no blanks in it.

    Prefixes and suffixes are taken off, from both ends at once, until a special word is left or
    nothing more comes off; what is left is an address, or is split at its infixes. Words
    that make a special one together, such as the ``:`` and ``)`` of ``(so:)``, are joined again.
    """
    if chunk.isalpha():
        return SPECIAL.get(chunk) or (chunk,)
    bare = chunk.lstrip(_ALWAYS_PREFIX)
    core = bare.rstrip(_ALWAYS_SUFFIX)
    before, behind = chunk[: len(chunk) - len(bare)], bare[len(core) :]
    if core.isalpha() or (core.isidentifier() and not UNIT.search(core, len(core) - LONGEST_UNIT)):
        words = [*before, *(SPECIAL.get(core) or (core,)), *behind]
        if not before and behind in NEVER_JOINED:
            return words
    elif core.endswith(".") and _ends_sentence(core):
        words = [*before, core[:-1], ".", *behind]
        if len(words) == 2:
            return words
    elif _has_no_affix(core):
        words = [*before, *_inside(core), *behind]
    else:
        starts, ends = [*before], [*reversed(behind)]
        inside = _inside(_peel(core, starts, ends))
        words = [*starts, *inside, *reversed(ends)]
    previous = ""
    for word in words:
        if previous in JOINED_STARTS and previous + word in JOINED_OR_STARTS:
            return _join_special(words)
        previous = word
    return words


def _ends_sentence(core: str) -> bool:
    """Whether a full stop stands behind an ordinary word in lower case."""
    stem = core[:-1]
    return stem.isalpha() and stem[-1].islower() and stem not in SPECIAL and core not in SPECIAL


def _has_no_affix(core: str) -> bool:
    """Whether it is plain that ``_peel`` would take nothing off; most cores are such."""
    last = core[-1:]
    return (
        core.isascii()
        and last not in PEELED_LAST
        and core[:1] not in PEELED_FIRST
        and core[-2:-1] != "'"
        and not (last in UNIT_ENDS and UNIT.search(core, max(0, len(core) - LONGEST_UNIT)))
        and "$" not in core
    )


def _peel(rest: str, before: list[str], behind: list[str]) -> str:
    """Take the affixes off; what is left may be nothing."""
    while rest and rest not in SPECIAL:
        start = _prefix(rest)
        if start and rest[start:] in SPECIAL:
            before.append(rest[:start])
            return rest[start:]
        end = len(rest) - _suffix(rest[start:])
        if end < len(rest) and rest[:end] in SPECIAL:
            behind.append(rest[end:])
            return rest[:end]
        if start == 0 and end == len(rest):
            break
        if start:
            before.append(rest[:start])
        if end < len(rest):
            behind.append(rest[end:])
        rest = rest[start:end]
    return rest


def _prefix(rest: str) -> int:
    """The length of the affix that a chunk begins with."""
    first = rest[0]
    if first in PREFIXES:
        return 1
    if first in ".+USCA" or first > "\x7f":
        found = PREFIX.match(rest)
        return found.end() if found else 0
    return 0


def _suffix(rest: str) -> int:
    """The length of the affix that a chunk ends with."""
    last = rest[-1:]
    if last in SUFFIXES:
        return 1
    if last == ".":
        dots = len(rest) - len(rest.rstrip("."))
        return dots if dots > 1 or _stops(rest[-4:-1]) else 0
    if last in "sS" and rest[-2:-1] in ("'", "’"):
        return 2
    if last in UNIT_ENDS and (unit := UNIT.search(rest, max(0, len(rest) - LONGEST_UNIT))):
        return len(unit.group(1))
    if last == "+":
        return int(rest[-2:-1] in "0123456789" and len(rest) > 1)
    return int(last > "\x7f" and ICON.match(last) is not None)


def _stops(before: str) -> bool:
    """Whether a full stop behind these characters is a word of its own, not an initial's."""
    last, second = before[-1:], before[-2:-1]
    if last in BEFORE_STOP:
        return True
    if not last.isalpha():
        return False
    upper = last.isupper() and not (second.isalpha() and not second.islower())
    return not upper or (second == "°" and last in "FCK")


def _inside(rest: str) -> Iterable[str]:
    """The words of a chunk without its affixes."""
    if not rest:
        return ()
    if rest in SPECIAL:
        return SPECIAL[rest]
    if rest.isalnum():
        return (rest,)
    infixes = _ascii_infixes(rest) if rest.isascii() else _infixes(rest)
    if not infixes or (MAYBE_URL.search(rest) and URL.match(rest)):
        return (rest,)
    words, begun = [], 0
    for start, end in infixes:
        if start > begun:
            words.append(rest[begun:start])
        words.append(rest[start:end])
        begun = end
    return [*words, rest[begun:]] if begun < len(rest) else words


def _ascii_infixes(rest: str) -> list[tuple[int, int]]:
    if not ASCII_INFIX.search(rest, 1):
        return []
    return [infix.span() for infix in ASCII_INFIX.finditer(rest) if infix.start()]


def _infixes(rest: str) -> list[tuple[int, int]]:
    found, place = [], 1
    while candidate := MAYBE_INFIX.search(rest, place):
        infix = INFIX.match(rest, candidate.start())
        if infix:
            found.append(infix.span())
        place = infix.end() if infix else candidate.end()
    return found


def _join_special(words: list[str]) -> list[str]:
    joined: list[str] = []
    index = 0
    while index < len(words):
        end = index + 1
        if words[index] in JOINED_STARTS:
            ends = range(min(index + 4, len(words)), index + 1, -1)
            end = next((e for e in ends if "".join(words[index:e]) in JOINED), end)
        word = "".join(words[index:end])
        joined += SPECIAL[word] if end > index + 1 else (word,)
        index = end
    return joined
