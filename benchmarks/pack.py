"""Packing examples into rows, beside TRL's and a plain first-fit decreasing, in one run.

    python benchmarks/pack.py [--examples 200000] [--seq-length 4096]

Lengths are log-normal, as those of conversations are (median 180 tokens). Ours goes from a
``.bin/.idx`` pair on disk to one of full rows and one of their mask; TRL's ``pack_dataset`` (best
fit in batches of 1000) from Arrow in memory to Arrow in memory; first-fit decreasing (as in NeMo's
``packing_utils.py``) gets the lengths alone. Each in this process, on one thread.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.data.indexed import IndexedWriter
from toolkit.data.pack.bestfit import pack
from toolkit.data.pack.examples import Pair, documents_of
from toolkit.data.pack.rows import write_rows

VOCAB = 32_000
PLAIN_EXAMPLES = 20_000
"""First-fit takes quadratic time: it gets no more than this."""


def timed(work: Callable[[], int]) -> tuple[float, int]:
    """Seconds, and the rows that came out."""
    started = time.perf_counter()
    rows = work()
    return time.perf_counter() - started, rows


def rows_on_disk(folder: Path, lengths: Any, seq_length: int) -> int:
    """Ours: from a pair of files to rows and their mask."""
    examples = documents_of([Pair(folder / "text")])
    packing = pack(examples.length, seq_length, 0)
    show = lambda rows: None  # noqa: E731
    return write_rows(examples, packing, seq_length, 0, folder / "rows", VOCAB, show).rows


def trl_packing(lengths: Any, seq_length: int) -> tuple[float, int]:
    """TRL's: Arrow to Arrow; its import is not counted."""
    from trl import pack_dataset

    dataset = arrow(lengths)
    return timed(lambda: len(pack_dataset(dataset, seq_length, "bfd")))


def first_fit(lengths: Any, seq_length: int) -> int:
    """Longest first, into the first row that has room."""
    room: list[int] = []
    for length in sorted(lengths.tolist(), reverse=True):
        row = next((n for n, free in enumerate(room) if free >= length), None)
        if row is None:
            room.append(seq_length - length)
        else:
            room[row] -= length
    return len(room)


def arrow(lengths: Any) -> Any:
    """The same examples as a Hugging Face dataset in memory."""
    import pyarrow as pa
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    bounds = pa.array(np.concatenate([[0], np.cumsum(lengths)]))
    tokens = pa.array(np.zeros(lengths.sum(), np.int32))
    return Dataset(pa.table({"input_ids": pa.LargeListArray.from_arrays(bounds, tokens)}))


def main() -> None:
    """Run each, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=200_000)
    parser.add_argument("--seq-length", type=int, default=4096)
    options = parser.parse_args()
    count, seq_length = options.examples, options.seq_length
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(5.2, 0.9, count), 2, seq_length).astype(np.int64)
    few = lengths[:PLAIN_EXAMPLES]
    found = {
        "ours, lengths alone": (lengths, timed(lambda: len(pack(lengths, seq_length, 0)))),
        "first-fit decreasing, lengths alone": (few, timed(lambda: first_fit(few, seq_length))),
        "ours on those": (few, timed(lambda: len(pack(few, seq_length, 0)))),
    }
    with tempfile.TemporaryDirectory() as name:
        with IndexedWriter(Path(name) / "text", VOCAB) as writer:
            writer.write(random.integers(0, VOCAB, lengths.sum(), np.uint16), lengths)
        work = timed(lambda: rows_on_disk(Path(name), lengths, seq_length))
        found["ours, tokens and masks, disk to disk"] = (lengths, work)
    if importlib.util.find_spec("trl"):
        found["TRL pack_dataset bfd, in memory"] = (lengths, trl_packing(lengths, seq_length))
    print(f"| rows of {seq_length:,} | examples | seconds | rows | full |\n|---|---|---|---|---|")
    for name, (packed, (seconds, rows)) in found.items():
        full = packed.sum() / (rows * seq_length)
        print(f"| {name} | {len(packed):,} | {seconds:.2f} | {rows:,} | {full:.3%} |")


if __name__ == "__main__":
    main()
