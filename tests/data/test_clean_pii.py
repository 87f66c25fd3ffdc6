"""Personal data: what is found, what is left alone, and what stands in its place."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from toolkit.data.clean import checksums
from toolkit.data.clean.scrub import Scrubber
from toolkit.data.clean.settings import SAFE_HARBOR_LIMITS, PiiSettings
from toolkit.data.clean.surrogates import CHECKS, Surrogates
from toolkit.errors import DataError

EVERY = PiiSettings(
    kinds=[
        *("email", "phone", "ip", "credit-card", "iban", "us-ssn", "nl-bsn", "uk-nino", "fr-nir"),
        *("de-steuer-id", "es-dni", "it-codice-fiscale"),
    ]
)
POSITIVES = [
    ("write to jane.doe+x@mail.example.co.uk.", "write to <EMAIL>."),
    ("<jane@example.org>", "<<EMAIL>>"),
    ("mailto:jane@example.org?subject=a", "mailto:<EMAIL>?subject=a"),
    ("Call +44 20 7946 0958 now", "Call <PHONE> now"),
    ("+31 6 12345678", "<PHONE>"),
    ("+49 (0)30 901820", "<PHONE>"),
    ("(415) 555-2671", "<PHONE>"),
    ("415-555-2671 or 415.555.2671", "<PHONE> or <PHONE>"),
    ("1-800-555-0199", "<PHONE>"),
    ("020-1234567", "<PHONE>"),
    ("tel: 0612345678.", "tel: <PHONE>."),
    ("Fax no. 555 0182 33", "Fax no. <PHONE>"),
    ("from 8.8.4.4:53", "from <IP>:53"),
    ("2001:4860:4860::8888", "<IP>"),
    ("4111 1111 1111 1111", "<CREDIT-CARD>"),
    ("3782-822463-10005", "<CREDIT-CARD>"),
    ("GB82 WEST 1234 5698 7654 32", "<IBAN>"),
    ("NL91ABNA0417164300", "<IBAN>"),
    ("219-09-9999", "<US-SSN>"),
    ("SSN: 219099999", "SSN: <US-SSN>"),
    ("BSN 111222333", "BSN <NL-BSN>"),
    ("AB 12 34 56 C", "<UK-NINO>"),
    ("2 55 08 14 168 025 38", "<FR-NIR>"),
    ("Steuer-ID: 86 095 742 719", "Steuer-ID: <DE-STEUER-ID>"),
    ("12345678Z", "<ES-DNI>"),
    ("X1234567L", "<ES-DNI>"),
    ("RSSMRA85T10A562S", "<IT-CODICE-FISCALE>"),
]
NEGATIVES = [
    "version 1.2.3.4 and v10.2.3.44, section 8.2.4.2",
    "ISBN 978-0-306-40615-7, ISBN-10 0-306-40615-2",
    "pi is 3.14159265358979 and 2 + 2 = 4; 1,234,567,890 of them",
    "at 12:30:45 on 2024-01-05, or 01-02-2024, 05/06/2024",
    "npm install lodash@4.17.21 @types/node foo@latest",
    "10.0.0.1, 192.168.1.1, 127.0.0.1, 0.0.0.0, 255.255.255.0, ::1, fe80::1",
    "std::vector<int> a::b, 00:1A:2B:3C:4D:5E",
    "4111 1111 1111 1112, 1234 5678 9012 3456, 0000 0000 0000 0000",
    "GB82 WEST 1234 5698 7654 33, DE00 0000 0000 0000 0000 00",
    "000-12-3456, 666-12-3456, 900-12-3456, 219-00-1234, 219-09-0000",
    "BSN 111222334, and 111222333 alone",
    "BG 12 34 56 C, AB 12 34 56 E, QQ123456C",
    "12345678A, X1234567A",
    "RSSMRA85T10A562T",
    "Boston, MA 02110-1301 USA",
    "commit 1234567890abcdef1234567890abcdef12345678",
    "x = 123456789; y = 0x1234567890",
    "pages 1234-5678, 100-200-300, the years 1914-1918 and 1939-1945",
    "0.123456789 0 1 2 3 4 5 6 7 8 9 10 11 12",
]


@pytest.mark.parametrize(("text", "expected"), POSITIVES)
def test_what_is_personal_is_replaced(text: str, expected: str) -> None:
    scrubber = Scrubber(EVERY)
    assert scrubber(text) == expected
    assert scrubber.counts.total() == len(re.findall("<[A-Z]", expected.replace("<<", "<")))


@pytest.mark.parametrize("text", NEGATIVES)
def test_what_only_looks_like_it_is_left_alone(text: str) -> None:
    scrubber = Scrubber(EVERY)
    assert scrubber(text) is text
    assert not scrubber.counts


def test_private_addresses_go_where_asked() -> None:
    every = Scrubber(PiiSettings(kinds=["ip"], ip_public_only=False))
    assert every("10.0.0.1 and fe80::1") == "<IP> and <IP>"


PIECES = st.sampled_from(
    [text for text, _ in POSITIVES] + NEGATIVES + ["<EMAIL>", "<DATE:2024>", "\n", "ID:", "Dr. "]
) | st.text("0123456789.-/ @:+()aZ<>", max_size=12)


@pytest.mark.parametrize("preset", [None, "hipaa-safe-harbor"])
@settings(deadline=None, max_examples=150, derandomize=True)
@given(pieces=st.lists(PIECES, max_size=6), glue=st.sampled_from([" ", "", ", ", "\n"]))
def test_with_tags_nothing_is_left_to_scrub(
    preset: str | None, pieces: list[str], glue: str
) -> None:
    settings = EVERY.model_copy(update={"preset": preset})
    once = Scrubber(settings)(glue.join(pieces))
    again = Scrubber(settings)
    assert again(once) == once
    assert not again.counts


@pytest.mark.parametrize(
    ("check", "good"),
    [
        (checksums.is_card, "5555555555554444"),
        (checksums.is_iban, "FR1420041010050500013M02606"),
        (checksums.is_bsn, "123456782"),
        (checksums.is_nir, "255081416802538"),
        (checksums.is_steuer_id, "86095742719"),
        (checksums.is_codice_fiscale, "RSSMRA85T10A562S"),
        (checksums.is_vin, "1HGCM82633A004352"),
    ],
)
def test_check_digits_catch_every_single_wrong_digit(check: object, good: str) -> None:
    assert callable(check)
    assert check(good)
    places = [i for i, c in enumerate(good) if c.isdigit() and (good[0].isdigit() or i > 3)]
    wrong = [good[:i] + str((int(good[i]) + 1) % 10) + good[i + 1 :] for i in places]
    assert not [text for text in wrong if check(text)]


def test_a_dni_has_its_letter() -> None:
    right = [letter for letter in checksums.DNI_LETTERS if checksums.is_dni(f"00000000{letter}")]
    assert right == ["T"]


def test_surrogates_are_stable_and_nobodys(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("long secret\n")
    text = "jane@example.org, 8.8.4.4, 219-09-9999, jane@example.org and 4111 1111 1111 1111"
    kinds = PiiSettings(kinds=EVERY.kinds, replace_with="surrogate", surrogate_key_file=str(secret))
    found = Scrubber(kinds)(text)
    assert found == Scrubber(kinds)(text)
    parts = re.split(", | and ", found)
    assert parts[0] == parts[3] != "jane@example.org"
    assert parts[0].endswith((".org", ".net"))
    assert parts[1].startswith(("192.0.2.", "198.51.100.", "203.0.113."))
    assert parts[2].startswith("666-")
    assert parts[4].startswith("9999 99") and checksums.luhn(parts[4].replace(" ", ""))
    secret.write_text("another secret")
    assert Scrubber(kinds)(text) != found
    secret.write_text("short")
    with pytest.raises(DataError, match="has 5 bytes, fewer than 8"):
        Scrubber(kinds)


@settings(deadline=None, max_examples=200, derandomize=True)
@given(kind=st.sampled_from(sorted(CHECKS)), number=st.integers(0, 10**11 - 1))
def test_surrogate_ids_fail_their_check(kind: str, number: int) -> None:
    shapes = {
        "us-ssn": "999-99-9999",
        "es-dni": "99999999A",
        "it-codice-fiscale": "AAAAAA99A99A999A",
    }
    digits = {"nl-bsn": 9, "fr-nir": 15, "de-steuer-id": 11}
    value = shapes.get(kind) or f"{number:0{digits[kind]}d}"[: digits[kind]]
    stand_in = Surrogates(str(number).encode())(kind, value)
    assert len(stand_in) == len(value)
    assert not CHECKS[kind]("".join(filter(str.isalnum, stand_in)))


NOTE = """Patient Name: DOE, JOHN A.   MRN: 00482915  DOB: 03/14/1931
Mr. John Doe is a 92-year-old man seen by Dr. Alice van Buren on March 3, 2024 at 14:30.
BP 120/80, HR 72, weight 3.5 kg, ejection fraction 45-50%.
Lives at 1234 N. Maple Street, Apt 4B, Springfield, IL 62704-1234, county: Sangamon.
Phone: (217) 555-0182, fax 217-555-0183, john.doe@mail.com, SSN 219-09-9999.
Health plan member ID: XK1234567. Account number 99881234. License # D1234567.
VIN 1HGCM82633A004352. Pacemaker serial no. PM-44321X. See https://portal.example.com/p?id=3
from 10.0.0.7. Fingerprints taken; file IMG_2231.jpg. Accession # S24-1234. ZIP code 03601.
Admitted 3/2, discharged 3/9. Aged 45, in remission since June 2021.
Electronically signed by: Alice van Buren, M.D."""


def test_safe_harbor_of_a_clinical_note() -> None:
    scrubber = Scrubber(PiiSettings(preset="hipaa-safe-harbor"))
    clean = scrubber(NOTE)
    gone = ["DOE", "JOHN", "John", "Doe", "Buren", "Maple", "Springfield", "Sangamon", "62704"]
    gone += ["00482915", "03/14", "March", "92", "555", "john.doe", "219-09", "XK1234567", "1931"]
    gone += ["99881234", "D1234567", "1HGCM", "PM-44321X", "portal", "10.0.0.7", "ingerprint"]
    gone += ["IMG_2231", "S24-1234", "03601", "3/2", "3/9", "June"]
    assert [word for word in gone if word in clean] == []
    kept = ["<DATE:2024>", "<DATE:2021>", "90+", "IL 627**", "000**", "14:30"]
    kept += ["120/80", "HR 72", "3.5 kg", "45-50%", "Aged 45", "Dr. ", "man seen by"]
    assert [word for word in kept if word not in clean] == []
    expected = {"name": 4, "date": 5, "zip": 2, "phone": 2, "mrn": 1, "age": 1, "vehicle": 1}
    expected |= {"device": 1, "license": 1, "account": 1, "health-plan": 1, "code": 1, "ip": 1}
    expected |= {"url": 1, "email": 1, "us-ssn": 1, "biometric": 1, "photo": 1, "address": 1}
    assert {kind: scrubber.counts[kind] for kind in expected} == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("DOB: 03/14/1928, seen 03/14/2021.", "DOB: <DATE>, seen <DATE:2021>."),
        ("Pt DOB 1/2/30 (age 94y).", "Pt DOB <DATE> (age 90+y)."),
        ("She was born in 1927.", "She was born in <DATE>."),
        ("Born on March 3, 1931 in May 2020.", "Born on <DATE> in <DATE:2020>."),
        ("Date of birth: 1929-01-02; age 89y.", "Date of birth: <DATE>; age 89y."),
        ("At age 95% of them; stillborn 2021-01-02.", "At age 95% of them; stillborn <DATE:2021>."),
        ("Patient: John Q. Smith  DOB: x", "Patient: <NAME>  DOB: x"),
        ("Patient: Ann Ageton: seen", "Patient: <NAME>: seen"),
    ],
)
def test_safe_harbor_leaves_no_year_of_birth_and_no_high_age(text: str, expected: str) -> None:
    assert Scrubber(PiiSettings(kinds=["email"], preset="hipaa-safe-harbor"))(text) == expected


def test_safe_harbor_says_what_it_cannot_do() -> None:
    text = "It was Maria who brought him in."
    assert Scrubber(PiiSettings(preset="hipaa-safe-harbor"))(text) == text
    assert "names in free text" in SAFE_HARBOR_LIMITS
    described = " ".join((PiiSettings.__doc__ or "").split())
    assert "names in free text" in described


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kinds": []}, "kinds is empty, and there is no preset; known are email"),
        ({"kinds": ["email", "email"]}, "kinds has 'email' twice"),
        (
            {"surrogate_key_file": "some file"},
            "surrogate_key_file goes with replace_with: surrogate",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PiiSettings.model_validate(given)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("IBAN BE68 5390 0754 7034 BIC KREDBEBB", "IBAN <IBAN> BIC KREDBEBB"),
        ("ES9121000418450200051332 AND MORE", "<IBAN> AND MORE"),
        ("BSN-nummer 123.456.782", "BSN-nummer <NL-BSN>"),
        ("DNI 12.345.678-Z", "DNI <ES-DNI>"),
        ("RSSMRA85T1LA562V, MRTMTT91D08F205J", "<IT-CODICE-FISCALE>, <IT-CODICE-FISCALE>"),
    ],
)
def test_identifiers_are_found_as_people_write_them(text: str, expected: str) -> None:
    assert Scrubber(EVERY)(text) == expected


@pytest.mark.parametrize("text", ["NIE X-1234567-L", "BSN ١١١٢٢٢٣٣٣", "12345678Z"])
def test_surrogates_differ_from_what_they_stand_for(text: str) -> None:
    settings = EVERY.model_copy(update={"replace_with": "surrogate"})
    scrubber = Scrubber(settings)
    found = scrubber(text)
    assert scrubber.counts.total() == 1
    assert found.split()[-1] != text.split()[-1]


@pytest.mark.parametrize(
    "unit",
    [
        "Ab ",
        "Ab-",
        "A.",
        "X-",
        "1.1.1.",
        "a-",
        "1:",
        "a:",
        "ID \t",
        "may ",
        "Apt ",
        "a.",
        "1 ",
        "@",
    ],
)
def test_no_text_takes_more_than_linear_time(unit: str) -> None:
    scrubber = Scrubber(EVERY.model_copy(update={"preset": "hipaa-safe-harbor"}))
    times = []
    for size in (20_000, 160_000):
        text = "ID" + " " * (size // 20) + unit * (size // len(unit))
        start = time.process_time()
        scrubber(text)
        times.append(time.process_time() - start)
    assert times[1] < 25 * times[0] + 0.2  # quadratic: 64 times
