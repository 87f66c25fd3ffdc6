"""Small dataset artifacts for the tests of packing, splits and blends."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.artifacts import Artifact, publish, sha256
from toolkit.data.indexed import IndexedReader, IndexedWriter
from toolkit.data.pack.rows import mask_prefix

Documents = list[tuple[int, ...]]


def documents(count: int, vocab_size: int, seed: int, longest: int = 60) -> Documents:
    """Random documents, all different."""
    random = np.random.default_rng(seed)
    lengths = random.integers(2, longest, count)
    return [(seed, *random.integers(0, vocab_size, n).tolist()) for n in lengths]


def write_documents(
    prefix: Path, found: Documents, vocab_size: int, sequences: int = 1, dtype: Any = None
) -> None:
    """A pair of files; with ``sequences`` each document is cut into so many."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    lengths = [len(d) for d in found]
    if sequences > 1:
        lengths = [n for d in found for n in (1, len(d) - 1)]
    with IndexedWriter(prefix, vocab_size, dtype) as writer:
        writer.write(
            np.concatenate([np.array(d, np.int64) for d in found]),
            np.array(lengths, np.int64),
            sequences=np.full(len(found), sequences),
        )


def make_dataset(
    folder: Path,
    pairs: dict[str, Documents],
    vocab_size: int,
    *,
    mask: bool = False,
    sequences: int = 1,
    tokenizer: str = "",
    **info: Any,
) -> Path:
    """A dataset artifact; its masks, if any, are 1 where the token is odd."""
    built = folder.with_name(f"{folder.name}.building")
    for name, found in pairs.items():
        write_documents(built / name, found, vocab_size, sequences)
        if mask:
            odd = [tuple(t % 2 for t in d) for d in found]
            write_documents(mask_prefix(built / name), odd, 2, sequences, np.uint8)
    path = built / "tokenizer" / "tokenizer.json"
    path.parent.mkdir()
    model = {"type": "WordLevel", "vocab": {f"<{n}>": n for n in range(300)}, "unk_token": "<0>"}
    path.write_text(json.dumps({"version": "1.0", "model": model, "added_tokens": []}) + tokenizer)
    masks = {"masks": [str(mask_prefix(Path(name))) for name in pairs]} if mask else {}
    total = sum(len(d) for found in pairs.values() for d in found)
    publish(
        built,
        folder,
        artifact_type="dataset",
        stage=folder.name,
        kind="tokenize",
        fingerprint=f"test-{folder.name}",
        info={
            "prefixes": list(pairs),
            "vocab_size": vocab_size,
            "eod_id": 0,
            "tokenizer_sha256": sha256(folder.with_name(f"{folder.name}.building") / "tokenizer"
                                       / "tokenizer.json"),
            "counts": {"written": sum(map(len, pairs.values())), "tokens": total},
            **masks,
            **info,
        },
    )  # fmt: skip
    return folder


def read_documents(artifact: Artifact, name: str) -> Documents:
    """The documents of a pair, whatever sequences they have."""
    reader = IndexedReader(artifact.path(name))
    bounds = reader.document_indices.tolist()
    return [tuple(t for n in range(a, b) for t in reader[n].tolist()) for a, b in pairwise(bounds)]
