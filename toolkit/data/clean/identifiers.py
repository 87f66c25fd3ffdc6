"""Where personal data of a known form stands in a text: patterns, and checks on what they find.

Every finder gives the places of one kind. What looks alike is told apart by check digits, by
issued ranges, or, where a number has neither, by a label in front of it.
"""

from __future__ import annotations

import ipaddress
import itertools
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from toolkit.data.clean import checksums


class Found(NamedTuple):
    """A place in a text, and what stands there."""

    start: int
    end: int
    kind: str
    replacement: str | None = None
    """What must stand there instead, whatever the settings; None: a tag or a surrogate."""


Finder = Callable[[str, int, int], Iterator[Found]]
"""Finds what lies in ``text[start:stop]``; what stands around it is seen too."""

_DOMAIN = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24}(?![A-Za-z0-9])"
)
_LOCAL_PART = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]+\Z")


def emails(text: str, start: int, stop: int) -> Iterator[Found]:
    """Addresses with a dotted domain that ends in letters; ``lodash@4.17.21`` is none."""
    place, free = text.find("@", start, stop), start
    while place >= 0:
        domain = _DOMAIN.match(text, place + 1)
        before = _LOCAL_PART.search(text, max(free, place - 64), place) if domain else None
        if domain and before:
            local = before.group().lstrip("'/.={|`?&")
            if local and text[place - 1] != ".":
                free = domain.end()
                yield Found(place - len(local), free, "email")
        place = text.find("@", max(place + 1, free), stop)


_DOTTED = re.compile(r"\.\d{1,3}\.\d{1,3}\.\d")
_IPV4 = re.compile(r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f]{1,4}:[0-9A-Fa-f:]{1,34}[0-9A-Fa-f:](?![\w:])")
_COLONS = re.compile(r":(?:[0-9A-Fa-f]{1,4}:[0-9A-Fa-f:]|:[0-9A-Fa-f]{1,4}(?![\w]))")
_VERSION = re.compile(
    r"(?:\bv|version|ver\.?|release|section|rev\.?|build|firmware)[\s:=]*\Z", re.I
)


def addresses(public_only: bool) -> Finder:
    """A finder of IPv4 and IPv6 addresses; numbers of versions and sections are none."""

    def find(text: str, start: int, stop: int) -> Iterator[Found]:
        found = itertools.chain(
            _around(_DOTTED, _IPV4, "0123456789", text, start, stop),
            _around(_COLONS, _IPV6, ":0123456789ABCDEFabcdef", text, start, stop),
        )
        for begin, end in found:
            if _is_address(text[begin:end], public_only) and not _VERSION.search(
                text, max(0, begin - 12), begin
            ):
                yield Found(begin, end, "ip")

    return find


def _around(
    sign: re.Pattern[str], whole: re.Pattern[str], before: str, text: str, start: int, stop: int
) -> Iterator[tuple[int, int]]:
    """Matches of ``whole`` about each match of a sign that is found much faster."""
    free = start
    for match in sign.finditer(text, start, stop):
        begin, least = match.start(), max(free, match.start() - AROUND)
        while begin > least and text[begin - 1] in before:
            begin -= 1
        if begin >= free and (found := whole.match(text, begin)):
            free = found.end()
            yield found.span()


def _is_address(text: str, public_only: bool) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if public_only:
        return address.is_global and (address.version == 4 or text[0] in "23")
    return address.version == 4 or text[0] in "23fF"


_MANY_DIGITS = re.compile(r"\d(?:[ .()/-]{0,2}\d){5,}")
AROUND = 40
"""Characters around many digits that their finders look at: a label, a country, a letter."""


def windows(text: str) -> Iterator[tuple[int, int]]:
    """The parts of a text that have six digits or more close together, with what is around."""
    begin = end = -1
    for match in _MANY_DIGITS.finditer(text):
        start, stop = max(0, match.start() - AROUND), min(len(text), match.end() + AROUND)
        if start > end:
            if end >= 0:
                yield begin, end
            begin = start
        end = stop
    if end >= 0:
        yield begin, end


_PHONE = re.compile(
    r"(?<![\w.+/=-])(?:"
    r"\+[1-9]\d{0,2}[ .\-/]?(?:\(0?\d{1,4}\)[ .\-/]?)?\d{1,5}(?:[ .\-/]?\d{2,5}){1,5}"
    r"|(?:1[ .-])?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[ .-])[2-9]\d{2}[ .-]\d{4}"
    r"|(?!\d{5}-\d{4}\b)\(?0[1-9]\d{0,3}\)?(?: ?[/-] ?| )\d{2,8}(?:[ -]\d{2,5}){0,3}"
    r")(?!\w|[.,:/-]\d|[ -]\d)"
)
_LABELLED_PHONE = re.compile(
    r"\b(?:tel(?:ephone|efon|efoon)?|phone|fax|mobile|cell|call|t[eé]l|handy|pager)\b"
    r"(?: ?(?:no|number|nr))?[.:]* {0,3}(\(?\+?\d(?:(?:[ ./-]|\) ?| ?\()?\d){5,14})(?!\w|[.,]?\d)",
    re.I,
)


def phones(text: str, start: int, stop: int) -> Iterator[Found]:
    """Numbers with a country code, North American ones, national ones with a 0, labelled ones."""
    for match in _PHONE.finditer(text, start, stop):
        digits = sum(map(str.isdigit, match.group()))
        if (8 if match.group()[0] == "+" else 9) <= digits <= 15:
            yield Found(*match.span(), "phone")
    for match in _LABELLED_PHONE.finditer(text, start, stop):
        if 6 <= sum(map(str.isdigit, match.group(1))) <= 15:
            yield Found(*match.span(1), "phone")


def checked(kind: str, pattern: str, check: Callable[[str], bool], strip: str = " -") -> Finder:
    """A finder of what a pattern finds (its group 1, or all of it) and a check confirms."""
    search = re.compile(pattern)
    group = 1 if search.groups else 0
    removed = str.maketrans("", "", strip)

    def find(text: str, start: int, stop: int) -> Iterator[Found]:
        for match in search.finditer(text, start, stop):
            if check(match.group(group).translate(removed)):
                yield Found(*match.span(group), kind)

    return find


_IBAN = re.compile(rf"(?<!\w)(?:{'|'.join(checksums.IBAN_LENGTHS)})\d\d")
_IBAN_RESTS = {
    length: re.compile(rf"(?: ?[A-Z0-9]){{{length - 4}}}(?!\w)")
    for length in set(checksums.IBAN_LENGTHS.values())
}


def ibans(text: str, start: int, stop: int) -> Iterator[Found]:
    """As long as their country's are, so that a word in capitals behind one is no part of it."""
    for match in _IBAN.finditer(text, start, stop):
        rest = _IBAN_RESTS[checksums.IBAN_LENGTHS[match.group()[:2]]].match(text, match.end())
        if rest and checksums.is_iban(text[match.start() : rest.end()].replace(" ", "")):
            yield Found(match.start(), rest.end(), "iban")


_START, _END = r"(?<![\w.,-])", r"(?![\w]|[.,-]\d)"
_MONTH = "[ABCDEHLMPRST]"
_OMOCODE = "[0-9LMNP-V]"
"""A digit of a codice fiscale, or the letter in its place that tells people of one code apart."""

FINDERS: dict[str, Finder] = {
    "email": emails,
    "iban": ibans,
    "credit-card": checked(
        "credit-card", rf"{_START}\d(?:[ -]?\d){{12,18}}{_END}", checksums.is_card
    ),
    "us-ssn": checked(
        "us-ssn",
        r"(?i:\bSSN|social security(?: number| no\.?)?)\W{1,4}"
        rf"(\d{{3}}[ -]?\d{{2}}[ -]?\d{{4}}){_END}",
        checksums.is_ssn,
    ),
    "nl-bsn": checked(
        "nl-bsn",
        r"(?i:\bBSN(?:-?nummer)?|burgerservicenummer|sofi-?nummer)\W{1,4}"
        rf"(\d{{4}}[. ]?\d{{2}}[. ]?\d{{2,3}}|\d{{3}}[. ]\d{{3}}[. ]\d{{3}}){_END}",
        checksums.is_bsn,
        " .",
    ),
    "uk-nino": checked(
        "uk-nino",
        r"(?<!\w)(?!BG|GB|NK|KN|TN|NT|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d\d ?\d\d ?\d\d"
        r" ?[A-D](?!\w)",
        lambda text: True,
    ),
    "fr-nir": checked(
        "fr-nir",
        rf"{_START}[12] ?\d\d ?(?:0[1-9]|1[0-2]|[2-9]\d) ?(?:\d\d|2[AB]) ?\d{{3}} ?\d{{3}}"
        rf" ?\d\d{_END}",
        checksums.is_nir,
    ),
    "de-steuer-id": checked(
        "de-steuer-id",
        r"(?i:\b(?:steuer-?id(?:entifikations)?-?(?:nummer|nr\.?)?|steuerliche id\w*(?:nummer)?"
        rf"|IdNr\.?|tax id))\W{{1,4}}(\d{{2}} ?\d{{3}} ?\d{{3}} ?\d{{3}}){_END}",
        checksums.is_steuer_id,
    ),
    "es-dni": checked(
        "es-dni",
        r"(?<![\w-])(?:\d{8}|\d\d\.\d{3}\.\d{3}|[XYZ]-?\d{7})[ -]?[A-HJ-NP-TV-Z](?!\w)",
        checksums.is_dni,
        " .-",
    ),
    "it-codice-fiscale": checked(
        "it-codice-fiscale",
        rf"(?<!\w)[A-Z]{{6}}{_OMOCODE}{{2}}{_MONTH}{_OMOCODE}{{2}}[A-Z]{_OMOCODE}{{3}}"
        r"[A-Z](?!\w)",
        checksums.is_codice_fiscale,
    ),
    "phone": phones,
}
"""Finders by kind, in the order in which they are asked: what one found, later ones leave."""


def _dashed_ssn() -> Finder:
    """SSNs with their hyphens need no label."""
    labelled = FINDERS["us-ssn"]
    dashed = checked("us-ssn", r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])", checksums.is_ssn)

    def find(text: str, start: int, stop: int) -> Iterator[Found]:
        yield from dashed(text, start, stop)
        yield from labelled(text, start, stop)

    return find


FINDERS["us-ssn"] = _dashed_ssn()
