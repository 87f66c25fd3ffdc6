"""Byte-level BPE as tiktoken and Mistral's tekken store it: ranks, a pattern, special tokens.

A ``.tiktoken`` file holds ranks alone. The pattern that splits the text and the special tokens come
from the file's name where it is one of OpenAI's encodings (``cl100k_base.tiktoken``), else from a
``tiktoken.json`` beside it: ``{"encoding": "cl100k_base"}`` or ``{"pattern": "...",
"special_tokens": {"<|endoftext|>": 100257}}``. A ``tekken.json`` holds all of it.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from toolkit.errors import DataError

TIKTOKEN_SETTINGS = "tiktoken.json"
BYTES = 256
END_OF_TEXT = "<|endoftext|>"
_FILL_IN = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")
_NOT_WORD = r"[^\r\n\p{L}\p{N}]?"
_HEAD, _TAIL = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CLITIC = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"

GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
CL100K_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
O200K_PATTERN = (
    rf"{_NOT_WORD}{_HEAD}*{_TAIL}+{_CLITIC}|{_NOT_WORD}{_HEAD}+{_TAIL}*{_CLITIC}"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_BLANKS}"
)
TEKKEN_PATTERN = (
    rf"{_NOT_WORD}{_HEAD}*{_TAIL}+|{_NOT_WORD}{_HEAD}+{_TAIL}*"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_BLANKS}"
)
_HARMONY = {
    "<|startoftext|>": 199998,
    "<|return|>": 200002,
    "<|constrain|>": 200003,
    "<|channel|>": 200005,
    "<|start|>": 200006,
    "<|end|>": 200007,
    "<|message|>": 200008,
    "<|call|>": 200012,
}
_O200K = {END_OF_TEXT: 199999, "<|endofprompt|>": 200018}


@dataclass(frozen=True)
class Encoding:
    """What the code that reads a ``.tiktoken`` file has to know of it."""

    pattern: str
    special_tokens: Mapping[str, int]


def _harmony() -> dict[str, int]:
    taken = {**_O200K, **_HARMONY}
    # The end of a prompt has two names; the reserved one is the later.
    free = (set(range(200_000, 201_088)) - set(taken.values())) | {200_018}
    return {**taken, **{f"<|reserved_{token}|>": token for token in sorted(free)}}


ENCODINGS: dict[str, Encoding] = {
    "gpt2": Encoding(GPT2_PATTERN, {END_OF_TEXT: 50256}),
    "r50k_base": Encoding(GPT2_PATTERN, {END_OF_TEXT: 50256}),
    "p50k_base": Encoding(GPT2_PATTERN, {END_OF_TEXT: 50256}),
    "p50k_edit": Encoding(
        GPT2_PATTERN, {END_OF_TEXT: 50256, **dict(zip(_FILL_IN, range(50281, 50284), strict=True))}
    ),
    "cl100k_base": Encoding(
        CL100K_PATTERN,
        {
            END_OF_TEXT: 100257,
            **dict(zip(_FILL_IN, range(100258, 100261), strict=True)),
            "<|endofprompt|>": 100276,
        },
    ),
    "o200k_base": Encoding(O200K_PATTERN, _O200K),
    "o200k_harmony": Encoding(O200K_PATTERN, _harmony()),
}
"""OpenAI's encodings, as ``tiktoken_ext/openai_public.py`` defines them."""

TEKKEN_SPECIAL = (
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
    *("[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]"),
    *("[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
    "[TOOL_CONTENT]",
)
"""The special tokens of tekken files up to version 7, which don't list them (mistral-common)."""


@dataclass(frozen=True)
class Ranks:
    """A byte-level BPE: two neighbours merge where their bytes are a token, the lowest id first."""

    ids: Mapping[bytes, int]
    """Ids of the tokens; tekken's begin after its special tokens."""
    pattern: str
    """Regular expression whose matches are encoded one by one."""
    special_tokens: Mapping[str, int]

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(*self.ids.values(), *self.special_tokens.values()) + 1

    @property
    def vocabulary(self) -> dict[str, int]:
        """Ids of the special tokens, and of the tokens whose bytes are text."""
        found = {}
        for token, identity in self.ids.items():
            try:
                found[token.decode()] = identity
            except UnicodeDecodeError:
                continue
        return {**found, **self.special_tokens}


def is_tiktoken(path: Path) -> bool:
    """Whether a file's first line is one of a ``.tiktoken`` file: base64, a blank, a number."""
    with path.open("rb") as stream:
        parts = stream.readline(4096).split()
    return len(parts) == 2 and parts[1].isdigit() and _bytes_of(parts[0]) is not None


def settings_of(path: Path) -> Path | None:
    """The ``tiktoken.json`` beside a ``.tiktoken`` file, if there is one."""
    settings = path.with_name(TIKTOKEN_SETTINGS)
    return settings if settings.is_file() else None


def read_tiktoken(path: Path) -> Ranks:
    """Read a ``.tiktoken`` file, and what its name or the ``tiktoken.json`` beside it adds.

    Raises:
        DataError: a line that is none, a byte without a token, or no pattern known for the file.
    """
    encoding = _encoding(path)
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        parts = line.split()
        token = _bytes_of(parts[0]) if len(parts) == 2 and parts[1].isdigit() else None
        if token is None and line.strip():
            raise DataError(
                f"not a token in base64, a blank and its rank: {line[:60]!r}",
                where=f"{path}:{number}",
            )
        if token is not None:
            if token in ranks:
                raise DataError(f"token {token!r} comes twice", where=f"{path}:{number}")
            ranks[token] = int(parts[1])
    _require_bytes(ranks, path)
    return Ranks(ranks, encoding.pattern, encoding.special_tokens)


def _bytes_of(text: bytes) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return None


def _encoding(path: Path) -> Encoding:
    settings = settings_of(path)
    if settings is not None:
        return _read_settings(settings)
    if path.stem in ENCODINGS:
        return ENCODINGS[path.stem]
    raise DataError(
        "a .tiktoken file says neither how to split text nor which special tokens there are, and "
        f"{path.stem!r} is none of the known encodings ({', '.join(ENCODINGS)})",
        where=str(path),
        hint=f'put a {TIKTOKEN_SETTINGS} beside it: {{"encoding": "cl100k_base"}}, or '
        '{"pattern": "...", "special_tokens": {"<|endoftext|>": 100257}}',
    )


def _read_settings(path: Path) -> Encoding:
    found = _json_object(path)
    unknown = set(found) - {"encoding", "pattern", "special_tokens"}
    if unknown or not ({"encoding", "pattern"} & set(found)):
        raise DataError(
            f"has {', '.join(map(repr, found)) or 'no key'}",
            where=str(path),
            hint='keys are "encoding" or "pattern", and "special_tokens"',
        )
    name = found.get("encoding")
    if name is not None and name not in ENCODINGS:
        raise DataError(
            f"encoding {name!r} is none of {', '.join(ENCODINGS)}", where=f"{path}: encoding"
        )
    base = ENCODINGS[name] if name is not None else Encoding("", {})
    special = found.get("special_tokens", base.special_tokens)
    if not _is_vocabulary(special):
        raise DataError("not an object of tokens and their ids", where=f"{path}: special_tokens")
    return replace(base, pattern=found.get("pattern", base.pattern), special_tokens=special)


def _is_vocabulary(found: Any) -> bool:
    return isinstance(found, dict) and all(type(v) is int and v >= 0 for v in found.values())


def read_tekken(path: Path) -> Ranks:
    """Read a ``tekken.json`` as mistral-common's ``Tekkenizer`` does.

    Special tokens come first, those that the file doesn't name as ``<SPECIAL_20>``; of the tokens
    only as many are used as fit ``default_vocab_size``.

    Raises:
        DataError: a key is missing, or tokens are not in the order of their ranks.
    """
    found = _json_object(path)
    try:
        settings, vocabulary = found["config"], found["vocab"]
        special = settings["default_num_special_tokens"]
        size = settings["default_vocab_size"] - special
        tokens = [base64.b64decode(token["token_bytes"]) for token in vocabulary[:size]]
        in_order = all(t["rank"] == rank for rank, t in enumerate(vocabulary[:size]))
        listed = found.get("special_tokens") or []
        names = {t["rank"]: t["token_str"] for t in listed} or dict(enumerate(TEKKEN_SPECIAL))
        pattern = settings["pattern"]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"not a tekken tokenizer ({error!r})", where=str(path)) from error
    ranks = {token: rank for rank, token in enumerate(tokens, start=special)}
    if not in_order or not len(ranks) == len(tokens) == size or max(names) >= special:
        raise DataError(
            f"not a tekken tokenizer of {size} tokens in the order of their ranks and "
            f"{special} special tokens",
            where=str(path),
        )
    _require_bytes(ranks, path)
    ids = {names.get(rank, f"<SPECIAL_{rank}>"): rank for rank in range(special)}
    return Ranks(ranks, pattern, ids)


def _json_object(path: Path) -> dict[str, Any]:
    try:
        found = orjson.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"invalid JSON: {error}", where=str(path)) from error
    if not isinstance(found, dict):
        raise DataError("not a JSON object", where=str(path))
    return found


def _require_bytes(ranks: Mapping[bytes, int], path: Path) -> None:
    missing = [byte for byte in range(BYTES) if bytes([byte]) not in ranks]
    if missing:
        raise DataError(
            f"{len(missing)} of the 256 bytes have no token, the first is {missing[0]:#04x}",
            where=str(path),
            hint="a byte-level BPE encodes every text; is the file whole?",
        )
