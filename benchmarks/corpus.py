"""Real text for benchmarks: documentation, manual pages and source code of this machine.

    python benchmarks/corpus.py corpus.jsonl --megabytes 250

Documents are whole files, each content once, in an order that a hash shuffles: the same machine
gives the same corpus. About two thirds of it is code; most of the rest is English prose.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import orjson

PROSE = (".txt", ".rst", ".md", ".gz", ".html")
CODE = (".py", ".pyi", ".c", ".h", ".hpp", ".js", ".pm", ".pl", ".sh")
ROOTS = ("/usr/share/doc", "/usr/share/man", "/usr/share/perl", "/usr/include", "/usr/lib/python3")
SHORTEST, LONGEST = 200, 1_000_000
"""Bytes of a document."""


def build_corpus(path: Path, megabytes: float) -> int:
    """Write ``{"text", "source"}`` lines of about so many megabytes of text; returns the bytes.

    Ends the program where the machine has less text than that.
    """
    target, written, seen = int(megabytes * 1e6), 0, set()
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as stream:
        for file in sorted(_files(), key=lambda f: hashlib.sha256(os.fsencode(f)).digest()):
            text = _read(file)
            digest = hashlib.sha256(text.encode()).digest()
            if not text or digest in seen:
                continue
            seen.add(digest)
            row = {"text": text, "source": file.suffix}
            stream.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
            written += len(text.encode())
            if written >= target:
                break
    if written < target:
        temporary.unlink()
        sys.exit(f"this machine has {written / 1e6:.0f} MB of text, not {megabytes:g}")
    temporary.replace(path)
    return written


def repeat(source: Path, target: Path, times: int) -> None:
    """A file that has the source's lines so many times: for flat memory, not for speed."""
    with target.open("wb") as stream:
        for _ in range(times):
            with source.open("rb") as lines:
                while block := lines.read(1 << 24):
                    stream.write(block)


def _files() -> Iterator[Path]:
    for root in (sysconfig.get_paths()["purelib"], sysconfig.get_paths()["stdlib"], *ROOTS):
        for folder, _, names in os.walk(root):
            for name in names:
                if name.endswith((*PROSE, *CODE)):
                    yield Path(folder, name)


def _read(file: Path) -> str:
    """The text of a file; nothing where it is no UTF-8 text of a good length."""
    try:
        raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        text = raw.decode("utf-8")
    except (OSError, ValueError, EOFError):
        return ""
    return text if SHORTEST <= len(raw) <= LONGEST and "\x00" not in text else ""


def main() -> None:
    """Build a corpus from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("--megabytes", type=float, default=250)
    options = parser.parse_args()
    size = build_corpus(options.path, options.megabytes)
    print(f"{options.path}: {size / 1e6:.1f} MB of text")


if __name__ == "__main__":
    main()
