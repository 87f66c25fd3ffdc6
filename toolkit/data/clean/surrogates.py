"""Plausible stand-ins for personal data: of the same shape, and nobody's."""

from __future__ import annotations

import hashlib
import string
from collections.abc import Iterator

from toolkit.data.clean import checksums

DOCUMENTATION_NETWORKS = ("192.0.2", "198.51.100", "203.0.113")
"""IPv4 addresses for documentation: RFC 5737."""


class Surrogates:
    """The same stand-in for the same value, as long as the key is the same.

    E-mail addresses are of example.org and example.net (RFC 2606), phone numbers of the 555-01xx
    that North America keeps for fiction, IP addresses of documentation networks; cards and IBANs
    keep their shape and check digits with an issuer that isn't one; other numbers keep their shape
    with a wrong check digit.
    """

    def __init__(self, key: bytes) -> None:
        self._key = hashlib.blake2b(key, digest_size=32).digest()

    def __call__(self, kind: str, value: str) -> str:
        """The stand-in for a value of a kind."""
        plain = "".join(value.split()).casefold()
        seed = hashlib.blake2b(f"{kind}\0{plain}".encode(), key=self._key, digest_size=32).digest()
        if kind == "email":
            return f"user{seed[:5].hex()}@example.{'org' if seed[5] & 1 else 'net'}"
        if kind == "phone":
            return f"+1 {2 + seed[0] % 8}{seed[1] % 9}{seed[2] % 10} 555 01{seed[3] % 100:02d}"
        if kind == "ip":
            return _address(seed, ":" in value)
        if kind in ("credit-card", "iban"):
            return _with_check(kind, value, seed)
        return _invalid(kind, value, seed)


def _address(seed: bytes, version_6: bool) -> str:
    if version_6:
        return f"2001:db8:{seed[:2].hex()}:{seed[2:4].hex()}::{1 + seed[4]:x}"
    return f"{DOCUMENTATION_NETWORKS[seed[0] % 3]}.{1 + seed[1] % 254}"


def _with_check(kind: str, value: str, seed: bytes) -> str:
    shape = _shaped(value, seed)
    plain = [c for c in shape if c.isalnum()]
    if kind == "iban":
        plain = [*value[:2], "0", "0", *("0" * 4), *plain[8:]]
        rest = int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97
        plain[2:4] = f"{98 - rest:02d}"
    else:
        plain[:6] = "999999"
        plain[-1] = next(d for d in string.digits if checksums.luhn("".join([*plain[:-1], d])))
    letters = iter(plain)
    return "".join(next(letters) if c.isalnum() else c for c in value)


CHECKS = {
    "us-ssn": checksums.is_ssn,
    "nl-bsn": checksums.is_bsn,
    "fr-nir": checksums.is_nir,
    "de-steuer-id": checksums.is_steuer_id,
    "es-dni": checksums.is_dni,
    "it-codice-fiscale": checksums.is_codice_fiscale,
}


def _invalid(kind: str, value: str, seed: bytes) -> str:
    """A value of the same shape that its check refuses."""
    check = CHECKS.get(kind)
    if kind == "us-ssn":
        return "666" + _shaped(value, seed)[3:]
    if kind == "uk-nino":
        return "QQ" + _shaped(value, seed)[2:-1] + value[-1]
    for attempt in range(100):
        found = _shaped(value, hashlib.blake2b(seed + bytes([attempt])).digest())
        if check is None or not check("".join(filter(str.isalnum, found))):
            return found
    return _shaped(value, seed)


def _shaped(value: str, seed: bytes) -> str:
    """Other digits for digits of any script, other letters for letters, the rest as it is."""
    stream = _stream(seed)
    return "".join(
        string.digits[next(stream) % 10]
        if c.isdecimal()
        else string.ascii_uppercase[next(stream) % 26]
        if c.isupper()
        else string.ascii_lowercase[next(stream) % 26]
        if c.isalpha()
        else c
        for c in value
    )


def _stream(seed: bytes) -> Iterator[int]:
    counter = 0
    while True:
        yield from hashlib.blake2b(seed + counter.to_bytes(4, "little")).digest()
        counter += 1
