"""Small indexed datasets with an artifact around them, and ways to damage them."""

import json
import random
from pathlib import Path

import numpy as np

from toolkit.artifacts import Artifact, publish
from toolkit.data.indexed import IndexedWriter, bin_path, idx_path
from toolkit.data.tokenizer_folder import open_tokenizer

VOCABULARY = 600
EOD = 0


def documents(seed: int, count: int = 120, longest: int = 90) -> list[np.ndarray]:
    """Documents of tokens that end with EOD."""
    rng = np.random.default_rng(seed)
    found = [rng.integers(1, VOCABULARY, n) for n in rng.integers(2, longest, count)]
    for document in found:
        document[-1] = EOD
    found[count // 2][0] = VOCABULARY - 1
    return found


def write(prefix: Path, found: list[np.ndarray], dtype: type | None = None) -> Path:
    prefix.parent.mkdir(parents=True, exist_ok=True)
    with IndexedWriter(prefix, VOCABULARY, dtype=dtype) as writer:
        lengths = np.array([len(d) for d in found], np.int64)
        writer.write(np.concatenate([np.zeros(0, np.int64), *found]), lengths)
    return prefix


def write_tokenizer(folder: Path, size: int = VOCABULARY, letter: str = "w") -> Path:
    """A tokenizer of words ``w1``, ``w2``, ...; token 0 ends documents."""
    folder.mkdir(parents=True)
    names = ["<eod>", "<unk>", *(f"{letter}{i}" for i in range(2, size))]
    settings = {
        "version": "1.0",
        "added_tokens": [],
        "model": {
            "type": "WordLevel",
            "vocab": {name: i for i, name in enumerate(names)},
            "unk_token": "<unk>",
        },
        "pre_tokenizer": {"type": "WhitespaceSplit"},
    }
    settings |= dict.fromkeys(["truncation", "padding", "normalizer", "post_processor", "decoder"])
    (folder / "tokenizer.json").write_text(json.dumps(settings))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<eod>"}')
    return folder


def artifact(folder: Path, shards: list[list[np.ndarray]], *, mask: bool = False) -> Artifact:
    """A dataset artifact of one prefix for each of ``shards``, as ``tokenize`` publishes it."""
    built = folder.with_name(f"{folder.name}.building")
    write_tokenizer(built / "tokenizer")
    names = [f"text_document-{i}" for i in range(len(shards))]
    for name, found in zip(names, shards, strict=True):
        write(built / name, found)
        if mask:
            write(built / f"{name}_mask", [d % 2 for d in found], np.uint8)
    info = {
        "prefixes": names,
        "dtype": "uint16",
        "vocab_size": VOCABULARY,
        "eod_id": EOD,
        "tokenizer_sha256": open_tokenizer(built / "tokenizer").sha256,
    }
    if mask:
        info["masks"] = [f"{name}_mask" for name in names]
    return publish(
        built,
        folder,
        artifact_type="dataset",
        stage="corpus",
        kind="tokenize",
        fingerprint="f",
        info=info,
    )


def flip(path: Path, chance: random.Random) -> int:
    """Flip one random bit; returns its byte."""
    content = bytearray(path.read_bytes())
    at = chance.randrange(len(content))
    content[at] ^= 1 << chance.randrange(8)
    path.write_bytes(content)
    return at


def swap(one: Path, two: Path) -> None:
    held = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(held)


def files(prefix: Path) -> tuple[Path, Path]:
    return bin_path(prefix), idx_path(prefix)
