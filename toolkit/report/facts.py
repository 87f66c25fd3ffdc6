"""What a stage says of its artifact, as labels and values for the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.report.read import mapping
from toolkit.report.scale import number, size

ACRONYMS = {
    "id": "id",
    "eod": "EOD",
    "eos": "EOS",
    "bos": "BOS",
    "sha256": "SHA-256",
    "dtype": "dtype",
    "gib": "GiB",
    "bpe": "BPE",
    "mfu": "MFU",
    "tflops": "TFLOP/s",
    "lora": "LoRA",
    "kl": "KL",
    "lr": "LR",
    "hf": "Hugging Face",
}
UNSAID = ("counts",)
"""Groups whose name adds nothing to their members'."""
LONGEST = 400
"""Characters of a value that are shown; what PII rules cannot find must fit."""
SHARES = ("share", "accuracy", "accuracies", "fraction")
"""Last words of keys whose values between 0 and 1 are percentages."""


@dataclass(frozen=True)
class Fact:
    """One label and what is to be said under it."""

    label: str
    value: str
    full: str = ""
    """The whole value, where ``value`` is cut short."""


@dataclass(frozen=True)
class Part:
    """One part of a bar: what became of some of the documents."""

    label: str
    count: int
    share: float
    """Of 1."""


def facts(info: Mapping[str, Any], skip: frozenset[str] = frozenset()) -> list[tuple[str, Fact]]:
    """Every plain value of ``info`` with its dotted key; nothing empty."""
    return [
        (key, fact)
        for key, value in flat(info)
        if key not in skip and key.partition(".")[0] not in skip and (fact := _fact(key, value))
    ]


def split(found: Sequence[tuple[str, Fact]]) -> tuple[list[Fact], list[Fact]]:
    """What stands at the top of ``info``, and what is nested below."""
    top = [fact for key, fact in found if "." not in key]
    return top, [fact for key, fact in found if "." in key]


def flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of nested mappings."""
    for key, inner in value.items():
        name = f"{prefix}{key}"
        if isinstance(inner, Mapping):
            yield from flat(inner, f"{name}.")
        else:
            yield name, inner


def label(key: str) -> str:
    """``document_lengths.p90`` as ``Document lengths, p90``; ``counts.tokens`` as ``Tokens``."""
    parts = [part for part in key.split(".") if part not in UNSAID]
    words = [
        " ".join(ACRONYMS.get(w, w) for w in part.replace("/", " ").split("_") if w)
        for part in parts
    ]
    text = ", ".join(words)
    return text[:1].upper() + text[1:]


def read_parts(info: Mapping[str, Any]) -> list[Part]:
    """What became of the documents that were read: they add up, and that is shown."""
    counts = mapping(info.get("counts"))
    total = counts.get("read")
    if not isinstance(total, int) or total <= 0:
        return []
    found = [(n, counts.get(n)) for n in ("written", "empty", "quarantined", "removed")]
    return [Part(name, n, n / total) for name, n in found if isinstance(n, int)]


def written(value: Any, key: str = "") -> str:
    """A value for a reader: thousands apart, floats rounded, bytes in units."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return size(value) if key.endswith("bytes") and value >= 1024 else f"{value:,}"
    if isinstance(value, float):
        last = key.replace("/", "_").rsplit("_", 1)[-1]
        return f"{value:.1%}" if last in SHARES and 0 <= value <= 1 else number(value, 4)
    if isinstance(value, list):
        return ", ".join(written(item) for item in value if not isinstance(item, (dict, list)))
    return str(value)


def _fact(key: str, value: Any) -> Fact | None:
    if value is None or value in ("", []):
        return None
    text = written(value, key)
    if not text:
        return None
    if key.endswith(("sha256", "fingerprint")):
        return Fact(label(key), text[:12], text)
    if len(text) > LONGEST:
        return Fact(label(key), text[: LONGEST - 1] + "…", text)
    return Fact(label(key), text)
