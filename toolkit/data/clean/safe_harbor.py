"""The 18 identifiers of HIPAA's Safe Harbor (45 CFR 164.514(b)(2)), as far as rules find them.

=== ========================= ==================================================================
A   names                     behind titles and labels, in front of M.D. and the like
B   places                    street addresses, PO boxes, city before state and ZIP, labelled ones;
                              of a ZIP code three digits stay, none in the 17 small areas
C   dates and ages            of dates the year stays, but of births, which tell ages over 89;
                              ages over 89 become 90+
D-Q numbers, addresses        fax with phone; MRN, health plan, account, licence, plate and device
                              numbers by their labels; VIN by its check digit; URLs
P   biometrics, photographs   their mention, and names of image files
R   any other code            by its label
=== ========================= ==================================================================

Names in running text, and codes without a label, are beyond rules.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from toolkit.data.clean import checksums
from toolkit.data.clean.identifiers import Finder, Found

SMALL_ZIP_AREAS = frozenset(
    f"{area:03d}"
    for area in (36, 59, 63, 102, 203, 556, 692, 790, 821, 823, 830, 831, 878, 879, 884, 890, 893)
)
"""First three digits of ZIP codes of areas with at most 20,000 people (HHS, of Census 2000)."""

_UPPER, _LETTER = "[A-ZÀ-ÖØ-Þ]", r"(?:[^\W\d_]|['’-])"
# Every repetition is bounded: what begins at each word must not run to the end of a text.
_NAME = rf"{_UPPER}{_LETTER}{{1,40}}|{_UPPER}\."
_PARTICLE = r"(?:(?:de|van|von|der|la|di|bin|al)[ \t]{1,4})?"
_LABEL = r"(?!(?:DOB|D\.O\.B\.|MRN|SSN|Age|Sex|Phone|Fax|ID)(?!\w))"
_NAMES = rf"(?:{_NAME})(?:[ \t]{{1,4}}{_LABEL}{_PARTICLE}(?:{_NAME})){{0,3}}"
_CREDENTIAL = r"(?:M\.?D|D\.?O|R\.?N|N\.?P|P\.?A(?:-C)?|Ph\.?D|LPN|CRNA|DDS|DPM)\b"
_LISTED = rf"{_NAMES}(?:,[ \t]{{0,4}}(?!{_CREDENTIAL})(?:{_NAME})(?:[ \t]{{1,4}}(?:{_NAME}))?)?"
_TITLED = re.compile(
    rf"\b(?:Mr|Mrs|Ms|Miss|Mx|Dr|Prof|Sir|Rev|Sr|Sra|Hr|Fr|Mme)\b\.?[ \t]{{1,4}}({_NAMES})"
)
_LABELLED = re.compile(
    r"\b(?i:patient(?:'s)?(?: name)?|name|first name|last name|surname|attending(?: physician)?"
    r"|physician|provider|surgeon|nurse|therapist|next of kin|guardian|mother|father|spouse|wife"
    r"|husband|daughter|son|brother|sister|emergency contact|employer|signed(?: by)?"
    r"|electronically signed by|dictated by|transcribed by|reviewed by|referred by|pcp|cc)"
    rf"[ \t]{{0,4}}[:=][ \t]{{0,4}}({_LISTED})"
)
_CREDENTIALS = re.compile(
    rf"\b({_UPPER}{_LETTER}{{1,40}}(?:[ \t]{{1,4}}{_UPPER}\.?)?"
    rf"(?:[ \t]{{1,4}}{_UPPER}{_LETTER}{{1,40}}){{1,3}}),?[ \t]{{1,4}}{_CREDENTIAL}"
)
_STREET = re.compile(
    r"\b\d{1,6}[A-Z]?[ \t]{1,4}(?:[NSEW]\.?[ \t]{1,4})?(?:[A-Z0-9][\w'’.-]{0,40}[ \t]{1,4}){1,4}"
    r"(?:Street|St|Avenue|Ave|Road|Rd|Boulevard|Blvd|Lane|Ln|Drive|Dr|Court|Ct|Way|Place|Pl|Terrace"
    r"|Ter|Circle|Cir|Highway|Hwy|Parkway|Pkwy|Square|Sq|Trail|Trl)\b\.?"
    r"(?:,?[ \t]{0,4}(?:Apt|Apartment|Suite|Ste|Unit|Room|Rm|Floor|Fl|#)\.?[ \t]{0,4}[\w-]+)?"
    r"|\bP\.?[ \t]?O\.?[ \t]{1,4}Box[ \t]{1,4}\d+"
)
_STATES = (
    "AL|AK|AZ|AR|CA|CO|CT|DE|DC|FL|GA|HI|ID|IL|IN|IA|KS|KY|LA|ME|MD|MA|MI|MN|MS|MO|MT|NE|NV|NH|NJ|NM"
    "|NY|NC|ND|OH|OK|OR|PA|PR|RI|SC|SD|TN|TX|UT|VT|VA|WA|WV|WI|WY"
)
_CITY = re.compile(
    rf"\b({_UPPER}(?:{_LETTER}|\.){{1,40}}(?:[ \t]{_UPPER}(?:{_LETTER}|\.){{1,40}}){{0,3}})"
    rf",[ \t]{{1,4}}(?:{_STATES})\b"
)
_LABELLED_PLACE = re.compile(
    r"\b(?i:city|town|county|precinct|parish|village|hospital|facility|address)"
    r"[ \t]{0,4}[:=][ \t]{0,4}([^\n;,<]{2,60})"
)
_ZIP = re.compile(
    rf"(?:\b(?:{_STATES})\.?,?[ \t]{{1,4}}"
    r"|\b(?i:zip(?:[ -]?code)?)[ \t]{0,4}[:=]?[ \t]{0,4})"
    r"(\d{5}(?:-\d{4})?)\b"
)
_MONTHS = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?"
    r"|sep(?:t(?:ember)?)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)"
)
_DAY, _YEAR = r"(?:0?[1-9]|[12]\d|3[01])", r"((?:19|20)\d\d)"
_DATES = (
    re.compile(rf"(?<![\w/.-]){_DAY}([/.-]){_DAY}\1(?:{_YEAR}|(\d\d))(?![\w/-]|\.\d)"),
    re.compile(
        rf"(?<![\w/.-]){_YEAR}([/.-])(?:0?[1-9]|1[0-2])\2{_DAY}"
        r"(?:[T ]\d\d:\d\d(?::\d\d)?Z?)?(?![\w/-]|\.\d)"
    ),
    re.compile(
        rf"(?i)\b{_MONTHS}\.?[ \t]{{1,4}}{_DAY}(?:st|nd|rd|th)?(?:,?[ \t]{{1,4}}{_YEAR})?\b(?!\w)"
    ),
    re.compile(
        rf"(?i)\b{_DAY}(?:st|nd|rd|th)?[ \t.-]{{1,4}}(?:of[ \t]{{1,4}})?{_MONTHS}\.?"
        rf"(?:[ \t,-]{{1,4}}{_YEAR})?\b"
    ),
    re.compile(rf"(?i)\b{_MONTHS}\.?,?[ \t]{{1,4}}(?:of[ \t]{{1,4}})?{_YEAR}\b"),
    re.compile(
        r"(?i)\b(?:on|since|until|dated?|dob|admitted|discharged|seen|born|from|through|d/c)"
        r"[: \t]{1,4}"
        rf"(?P<short>(?:0?[1-9]|1[0-2])/{_DAY})(?![\w/%]|\.\d|[ \t]{{0,4}}mm)"
    ),
)
_BIRTH = re.compile(
    r"(?i)(?:\bD\.?O\.?B\.?|\bborn|\bbirth[ ]?(?:date|day)?|\bdate of birth)"
    r"[ \t:=(]{0,6}(?:(?:on|in|is)[ \t]{1,4})?$"
)
_BIRTH_YEAR = re.compile(
    r"(?i)\b(?:D\.?O\.?B\.?|born|year of birth|birth year)[ \t:=]{0,4}(?:in[ \t]{1,4})?"
    r"((?:19|20)\d\d)\b(?![/.-]\d)"
)
_AGES = re.compile(
    r"(?i)\b(9\d|1[0-3]\d)"
    r"(?=[- ]?(?:years?|yrs?|y)[- .]*(?:old|o\b|/o\b|of age)|[ -]?yo\b|[- ]y/o\b)"
    r"|\bage[d]?[: \t]{1,4}(?:of[ \t]{1,4})?(9\d|1[0-3]\d)(?![\d+%])"
)
_VIN = re.compile(r"(?<!\w)[A-HJ-NPR-Z0-9]{17}(?!\w)")
_URL = re.compile(r"\b(?:https?://|ftp://|www\.)[^\s<>\"')\]]+[^\s<>\"')\].,;:!?]")
_MENTIONS = {
    "biometric": re.compile(
        r"(?i)\b(?:finger|palm|voice|foot)[ -]?prints?\b|\b(?:retina(?:l)?|iris|facial|face)[ -]?"
        r"(?:scan|recognition|geometry|template)s?\b"
        r"|\bbiometric\w*(?:[ ]{1,4}(?:id|template|record)s?)?"
    ),
    "photo": re.compile(
        r"(?i)\b(?:full[- ]face[ ]{1,4})?photo(?:graph)?s?\b"
        r"|(?<![\w-])[\w-]+\.(?:jpe?g|png|tiff?|heic|dcm)\b"
    ),
}
_CODE = (
    r"[ \t]{0,4}(?i:is|no\.?|number|num|nr\.?|id|#)?[ \t]{0,4}[:#=]?[ \t]{0,4}#?"
    r"((?=[\w/-]*\d)[A-Za-z0-9][\w/-]{3,24})\b"
)
_LABELS = {
    "mrn": r"MRN|M\.R\.N\.|medical record(?: number| no\.?)?|chart"
    r"|(?:hospital|unit) (?:no\.?|number)",
    "health-plan": r"(?:health plan|member|policy|subscriber|group|insurance|medicare|medicaid"
    r"|beneficiary|HICN)"
    r"[ \t]{0,4}(?:id|no\.?|number|#)",
    "account": r"account|acct\.?|invoice|billing (?:no\.?|number|id)",
    "license": r"(?:driver'?s? )?licen[cs]e|certificate|DEA|NPI|passport",
    "vehicle": r"VIN|(?:license )?plate|vehicle (?:id|no\.?|number)|registration",
    "device": r"serial|S/N|SN|device|implant|pacemaker|UDI|lot",
    "code": r"accession|specimen|encounter|visit|case|study|trial|order|claim|sample|subject|record"
    r"|patient id|ID",
}


def names(text: str, start: int, stop: int) -> Iterator[Found]:
    """Names behind titles and labels, and in front of credentials."""
    for pattern in (_LABELLED, _TITLED, _CREDENTIALS):
        for match in pattern.finditer(text, start, stop):
            yield Found(*match.span(1), "name")


def places(text: str, start: int, stop: int) -> Iterator[Found]:
    """Geographic subdivisions smaller than a state."""
    for match in _STREET.finditer(text, start, stop):
        yield Found(*match.span(), "address")
    for pattern in (_CITY, _LABELLED_PLACE):
        for match in pattern.finditer(text, start, stop):
            yield Found(*match.span(1), "place")
    for match in _ZIP.finditer(text, start, stop):
        first = match.group(1)[:3]
        kept = "000" if first in SMALL_ZIP_AREAS else first
        yield Found(*match.span(1), "zip", f"{kept}**")


def dates(text: str, start: int, stop: int) -> Iterator[Found]:
    """All elements of dates but the year, which stays in tags but those of births; high ages."""
    for pattern in _DATES:
        for match in pattern.finditer(text, start, stop):
            year = next((g for g in match.groups() if g and g.isdigit()), None)
            span = match.span("short") if "short" in pattern.groupindex else match.span()
            if _BIRTH.search(text[max(start, span[0] - 32) : span[0]]):
                year = None
            yield Found(*span, "date", f"<DATE:{year}>" if year else "<DATE>")
    for match in _BIRTH_YEAR.finditer(text, start, stop):
        yield Found(*match.span(1), "date", "<DATE>")
    for match in _AGES.finditer(text, start, stop):
        yield Found(*match.span(match.lastindex or 0), "age", "90+")


def vehicles(text: str, start: int, stop: int) -> Iterator[Found]:
    """Vehicle identification numbers with a right check digit."""
    for match in _VIN.finditer(text, start, stop):
        if any(map(str.isdigit, match.group())) and checksums.is_vin(match.group()):
            yield Found(*match.span(), "vehicle")


def urls(text: str, start: int, stop: int) -> Iterator[Found]:
    """Web addresses."""
    for match in _URL.finditer(text, start, stop):
        yield Found(*match.span(), "url")


def mentions(text: str, start: int, stop: int) -> Iterator[Found]:
    """That there are biometrics or photographs, and the names of image files."""
    for kind, pattern in _MENTIONS.items():
        for match in pattern.finditer(text, start, stop):
            yield Found(*match.span(), kind)


def _labelled(kind: str, labels: str) -> Finder:
    pattern = re.compile(rf"(?<![\w<])(?i:{labels}){_CODE}")

    def find(text: str, start: int, stop: int) -> Iterator[Found]:
        for match in pattern.finditer(text, start, stop):
            yield Found(*match.span(1), kind)

    return find


BEFORE: tuple[Finder, ...] = (urls, vehicles)
"""What is asked before the finders of ``identifiers.py``."""
BEHIND: tuple[Finder, ...] = (
    dates,
    *(_labelled(kind, labels) for kind, labels in _LABELS.items()),
    places,
    names,
    mentions,
)
"""What is asked behind them."""
