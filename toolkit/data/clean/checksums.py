"""Check digits of numbers that identify people, accounts and vehicles: pure arithmetic."""

from __future__ import annotations

import re
from collections import Counter

IBAN_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO",
        16: "BE",
        18: "DK FI FO GL NL SD",
        19: "MK SI",
        20: "AT BA EE KZ LT LU MN XK",
        21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA",
        23: "AE GI IL IQ OM SO TL",
        24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST",
        26: "IS TR",
        27: "BI DJ FR GR IT MC MR SM",
        28: "AL AZ BY CY DO GT HU LB NI PL SV",
        29: "BR EG PS QA UA",
        30: "JO KW MU YE",
        31: "MT SC",
        32: "LC",
        33: "RU",
    }.items()
    for country in countries.split()
}
"""Characters of an IBAN, by country: the SWIFT registry."""
DNI_LETTERS = "TRWAGMYFPDXBNJZSQVHLCKE"
VIN_VALUES = dict(zip("ABCDEFGHJKLMNPRSTUVWXYZ", "12345678123457923456789", strict=True))
VIN_WEIGHTS = (8, 7, 6, 5, 4, 3, 2, 10, 0, 9, 8, 7, 6, 5, 4, 3, 2)
ODD_VALUES = (
    1,
    0,
    5,
    7,
    9,
    13,
    15,
    17,
    19,
    21,
    2,
    4,
    18,
    20,
    11,
    3,
    6,
    8,
    12,
    14,
    16,
    10,
    22,
    25,
    24,
    23,
)
"""Of the letters at odd places of a codice fiscale; digits have the values of A to J."""
CARDS = re.compile(
    r"4\d{12}(?:\d{3}){0,2}|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}"
    r"|3[47]\d{13}|3(?:0[0-5]|[68]\d)\d{11}|35(?:2[89]|[3-8]\d)\d{12}"
    r"|6(?:011|5\d\d|4[4-9]\d)\d{12}|62\d{14,17}"
)
"""Lengths and first digits that card networks issue."""


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others: ISO/IEC 7812."""
    doubled = [int(digit) * 2 for digit in digits[-2::-2]]
    total = sum(value - 9 if value > 9 else value for value in doubled)
    return (total + sum(map(int, digits[-1::-2]))) % 10 == 0


def is_card(digits: str) -> bool:
    """A card's number: a network's length and first digits, Luhn, and not one digit alone."""
    return CARDS.fullmatch(digits) is not None and len(set(digits)) > 1 and luhn(digits)


def is_iban(text: str) -> bool:
    """An IBAN without blanks: its country's length, and 1 modulo 97 (ISO 13616)."""
    if IBAN_LENGTHS.get(text[:2]) != len(text) or not text[2:4].isdigit():
        return False
    return int("".join(str(int(c, 36)) for c in text[4:] + text[:4])) % 97 == 1


def is_ssn(digits: str) -> bool:
    """A US social security number that may have been issued, of 9 digits."""
    area, group, serial = digits[:3], digits[3:5], digits[5:]
    return area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"


def is_bsn(digits: str) -> bool:
    """A Dutch citizen's number: the elfproef."""
    weights = (9, 8, 7, 6, 5, 4, 3, 2, -1)
    digits = digits.zfill(9)
    total = sum(w * int(d) for w, d in zip(weights, digits, strict=True))
    return total % 11 == 0 and len(set(digits)) > 1


def is_nir(text: str) -> bool:
    """A French social security number of 15 characters, with its key."""
    number = text[:13].replace("2A", "19").replace("2B", "18")
    return number.isdigit() and 97 - int(number) % 97 == int(text[13:])


def is_steuer_id(digits: str) -> bool:
    """A German tax number of 11 digits: ISO 7064 (11, 10), and one digit twice or three times."""
    often = sorted(Counter(digits[:10]).values(), reverse=True)
    if digits[0] == "0" or often[0] not in (2, 3) or (len(often) > 1 and often[1] != 1):
        return False
    product = 10
    for digit in digits[:10]:
        product = ((int(digit) + product) % 10 or 10) * 2 % 11
    return (11 - product) % 10 == int(digits[10])


def is_dni(text: str) -> bool:
    """A Spanish DNI (8 digits) or NIE (X, Y or Z and 7 digits), and its letter."""
    number = text[:-1].translate(str.maketrans("XYZ", "012"))
    return number.isdecimal() and DNI_LETTERS[int(number) % 23] == text[-1]


def is_codice_fiscale(text: str) -> bool:
    """An Italian tax code of 16 characters, by its last one."""
    values = [int(c) if c.isdigit() else ord(c) - ord("A") for c in text[:15]]
    total = sum(ODD_VALUES[v] for v in values[::2]) + sum(values[1::2])
    return chr(ord("A") + total % 26) == text[15]


def is_vin(text: str) -> bool:
    """A vehicle's number of 17 characters, by its check digit (North America's)."""
    values = (int(VIN_VALUES.get(c, c)) for c in text)
    check = sum(w * v for w, v in zip(VIN_WEIGHTS, values, strict=True)) % 11
    return text[8] == ("X" if check == 10 else str(check))
