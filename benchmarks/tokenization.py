"""The ``tokenize`` stage against Megatron-LM's tools and against the machine's own limits.

    python benchmarks/tokenization.py [--megabytes 250] [--megatron DIR --megatron-python PYTHON]
        [--large 2500] [--kinds]

Every figure is of whole processes: Python's start, imports, reading, encoding, writing, merging,
checksums. Megatron-LM's tools run where ``--megatron`` names a checkout (its newest needs Python
3.12, with torch and transformers); without it they are left out. ``--large`` adds the table of cost
and memory by size, ``--kinds`` other kinds of tokenizers. (The name is not ``tokenize.py``, which
would hide the standard library's module from every script in this folder.)
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from corpus import build_corpus, repeat

from toolkit.pipeline.state import StageFile

ROOT = Path(__file__).resolve().parent.parent
VOCABULARY = 32_000
WORKERS = 2


@dataclass
class Run:
    """One process and what it took."""

    seconds: float
    peak: float
    """MiB of the largest process of the tree; 0 where it was not looked at."""
    first: float = 0.0
    """Seconds until the first shard stood."""
    output: str = ""


def stage(folder: Path, settings: dict[str, object]) -> list[str]:
    """Write a stage's folder; gives the command that works on it."""
    folder.mkdir(parents=True)
    kind = str(settings["kind"])
    inputs = {}
    if tokenizer := settings.get("tokenizer"):
        inputs[str(tokenizer)] = {"folder": str(tokenizer), "type": "tokenizer", "fingerprint": ""}
    StageFile(folder.name, kind, folder.name, 1, settings, inputs).write(folder)
    return [sys.executable, "-m", "toolkit.worker", str(folder)]


def measure(command: list[str], shards: Path | None = None, **environment: str) -> Run:
    """Run a command to its end."""
    begun = time.perf_counter()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment},
    )
    found = Run(0.0, 0.0)
    watcher = threading.Thread(target=_watch, args=(process, found, shards, begun))
    watcher.start()
    found.output, _ = process.communicate()
    found.seconds = time.perf_counter() - begun
    watcher.join()
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}:\n{found.output[-3000:]}")
    return found


def _watch(process: subprocess.Popen[str], found: Run, shards: Path | None, begun: float) -> None:
    while process.poll() is None:
        for pid in [process.pid, *_children(process.pid)]:
            found.peak = max(found.peak, _peak(pid))
        if shards and not found.first and any(shards.glob("[0-9]*")):
            found.first = time.perf_counter() - begun
        time.sleep(0.01)


def _children(pid: int) -> list[int]:
    try:
        return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _peak(pid: int) -> float:
    """High-water mark of a process's resident memory, in MiB."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0.0
    return int(found[1]) / 1024 if found else 0.0


def ours(work: Path, name: str, corpus: Path, tokenizer: Path) -> Run:
    """Our stage, in a worker process of its own."""
    settings = {
        "kind": "tokenize",
        "sources": [str(corpus)],
        "tokenizer": str(tokenizer),
        "resources": {"cpus_per_task": WORKERS},
    }
    folder = work / name
    return measure(stage(folder, settings), folder / "work" / "shards")


def ceilings(corpus: Path, tokenizer: Path) -> dict[str, float]:
    """MB/s of one thread that only reads, only encodes (with a cold cache), only writes."""
    import numpy as np

    from toolkit.data.documents import DocumentReader
    from toolkit.data.encoders import open_encoder
    from toolkit.data.indexed import IndexedWriter
    from toolkit.data.sources import expand
    from toolkit.data.tokenize_shard import batches
    from toolkit.data.tokenizer_folder import open_tokenizer

    def rate(begun: float) -> float:
        return corpus.stat().st_size / 1e6 / (time.perf_counter() - begun)

    found = {}
    begun = time.perf_counter()
    for _ in DocumentReader(expand(corpus)):
        continue
    found["parse"] = rate(begun)
    opened = open_tokenizer(tokenizer)
    encoder = open_encoder(opened, "gigatoken")
    texts = [[d.text for d in batch] for batch in batches(DocumentReader(expand(corpus)))]
    begun = time.perf_counter()
    encoded = [encoder.encode_batch(batch) for batch in texts]
    found["encode"] = rate(begun)
    with tempfile.TemporaryDirectory(dir=corpus.parent) as folder:
        begun = time.perf_counter()
        with IndexedWriter(Path(folder) / "a", opened.vocab_size) as writer:
            for batch in encoded:
                writer.write(batch.tokens, batch.lengths.astype(np.int64))
        found["write"] = rate(begun)
    return found


def peers(
    work: Path, corpus: Path, options: argparse.Namespace, *kind: str, fast: bool = True
) -> Iterator[tuple[str, Run]]:
    """Megatron-LM's two tools over the same file."""
    common = ["--input", str(corpus), *kind, "--append-eod", "--output-prefix"]
    environment = {"PYTHONPATH": str(options.megatron)}
    tools = options.megatron / "tools"
    slow = [options.megatron_python, str(tools / "preprocess_data.py"), *common, str(work / "p1")]
    yield (
        "preprocess_data.py --workers 2",
        measure([*slow, "--workers", str(WORKERS)], **environment),
    )
    if fast:
        quick = [options.megatron_python, str(tools / "preprocess_data_fast.py"), *common]
        yield (
            "preprocess_data_fast.py",
            measure([*quick, str(work / "p2"), "--use-gigatoken"], **environment),
        )


def datasets_map(corpus: Path, tokenizer: Path) -> Run:
    """Hugging Face ``datasets.map`` with the fast tokenizer, batched, in two processes."""
    script = (
        "import sys; from datasets import load_dataset; from transformers import AutoTokenizer\n"
        "t = AutoTokenizer.from_pretrained(sys.argv[2])\n"
        "d = load_dataset('json', data_files=sys.argv[1], split='train', cache_dir=sys.argv[3])\n"
        "d.map(lambda b: t(b['text']), batched=True, num_proc=2, remove_columns=d.column_names)\n"
    )
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-c", script, str(corpus), str(tokenizer), cache]
        return measure(command, TOKENIZERS_PARALLELISM="false")


def head(corpus: Path, target: Path, megabytes: float) -> Path:
    """The first lines of a corpus."""
    left = megabytes * 1e6
    with corpus.open("rb") as lines, target.open("wb") as stream:
        for line in lines:
            stream.write(line)
            left -= len(line)
            if left <= 0:
                return target
    return target


def row(name: str, size: float, run: Run, base: Run | None = None) -> None:
    """Print a line of the main table; ratios are in throughput, so that sizes may differ."""
    rate = size / run.seconds
    ratio = f"{run_rate(base) / rate:.1f}x" if base else "1"
    print(f"| {name} | {size:.0f} | {run.seconds:.2f} | {rate:.1f} | {run.peak:.0f} | {ratio} |")


def run_rate(run: Run) -> float:
    """MB/s that was noted with a run."""
    return float(run.output)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megabytes", type=float, default=250)
    parser.add_argument("--corpus", type=Path, help="JSON lines to use, rather than to build some")
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer's folder, rather than to train")
    parser.add_argument("--megatron", type=Path, help="a checkout of Megatron-LM")
    parser.add_argument("--megatron-python", default=sys.executable)
    parser.add_argument("--large", type=float, help="MB of the largest corpus, repeated text")
    parser.add_argument("--kinds", action="store_true", help="other kinds of tokenizers, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.corpus and options.corpus.parent) as folder:
        work = Path(folder)
        corpus = options.corpus or work / "corpus.jsonl"
        if not options.corpus:
            build_corpus(corpus, options.megabytes)
        tokenizer = options.tokenizer or train(work, corpus)
        whole_process(work, corpus, tokenizer, options)
        if options.large:
            by_size(work, corpus, tokenizer, options.large)
        if options.kinds:
            other_kinds(work, corpus, options)


def train(work: Path, corpus: Path) -> Path:
    """A byte-level BPE vocabulary of the corpus."""
    settings = {
        "kind": "train-tokenizer",
        "sources": [str(corpus)],
        "vocab_size": VOCABULARY,
        "max_bytes": 50_000_000,
    }
    measure(stage(work / "vocabulary", settings))
    return work / "vocabulary" / "artifact"


def whole_process(work: Path, corpus: Path, tokenizer: Path, options: argparse.Namespace) -> None:
    """Ours, Megatron's and datasets' on one file, and the limits of this machine."""
    size = corpus.stat().st_size / 1e6
    best = min((ours(work, f"ours-{n}", corpus, tokenizer) for n in range(3)),
               key=lambda run: run.seconds)  # fmt: skip
    best.output = str(size / best.seconds)
    print("| whole process, 2 workers | MB | s | MB/s | peak MiB of a process | ours is |")
    print("|---|---|---|---|---|---|")
    row("toolkit tokenize (best of 3)", size, best)
    if options.megatron:
        kind = ("--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", str(tokenizer))
        for name, run in peers(work, corpus, options, *kind):
            row(name, size, run, best)
            if timer := re.search(r"Elapsed time: ([\d.]+)", run.output):
                row("  its own timer", size, Run(float(timer[1]), 0.0), best)
    part = head(corpus, work / "part.jsonl", 25)
    mapped = datasets_map(part, tokenizer)
    row("datasets.map, num_proc=2", part.stat().st_size / 1e6, mapped, best)
    print(f"\nstart to first shard: {best.first:.2f} s")
    limits = ceilings(corpus, tokenizer)
    for name, rate in limits.items():
        print(f"one thread, {name} alone: {rate:.0f} MB/s")
    together = WORKERS / sum(1 / rate for rate in limits.values())
    twice = work / "twice.jsonl"
    repeat(corpus, twice, 3)
    longer = ours(work, "longer", twice, tokenizer)
    steady = 2 * size / (longer.seconds - best.seconds)
    print(
        f"steady state (3x the file, less the time of 1x): {steady:.0f} MB/s, "
        f"{steady / together:.0%} of the {together:.0f} MB/s of {WORKERS} threads at these limits"
    )
    twice.unlink()


def by_size(work: Path, corpus: Path, tokenizer: Path, largest: float) -> None:
    """Cost and memory at a tenth of the corpus, all of it, and much more."""
    size = corpus.stat().st_size / 1e6
    large = work / "large.jsonl"
    repeat(corpus, large, max(1, round(largest / size)))
    print("\n| MB | s | MB/s | peak MiB of a process |")
    print("|---|---|---|---|")
    for path in (head(corpus, work / "small.jsonl", size / 10), corpus, large):
        run = ours(work, f"size-{path.stem}", path, tokenizer)
        size = path.stat().st_size / 1e6
        print(f"| {size:.0f} | {run.seconds:.2f} | {size / run.seconds:.0f} | {run.peak:.0f} |")
    large.unlink()


def other_kinds(work: Path, corpus: Path, options: argparse.Namespace) -> None:
    """SentencePiece, tekken and WordPiece, against preprocess_data.py with the same."""
    part = head(corpus, work / "kinds.jsonl", 20)
    size = part.stat().st_size / 1e6
    print("\n| tokenizer | MB | toolkit MB/s | preprocess_data.py MB/s | ratio |")
    print("|---|---|---|---|---|")
    for name, tokenizer, kind in tokenizers(work, part):
        run = ours(work, f"kind-{len(name)}-{name[:3]}", part, tokenizer)
        theirs = "-", "-"
        if options.megatron and kind:
            [(_, peer)] = peers(work, part, options, *kind, fast=False)
            theirs = f"{size / peer.seconds:.1f}", f"{peer.seconds / run.seconds:.1f}x"
        print(f"| {name} | {size:.0f} | {size / run.seconds:.1f} | {theirs[0]} | {theirs[1]} |")


def tokenizers(work: Path, corpus: Path) -> Iterator[tuple[str, Path, tuple[str, ...]]]:
    """A WordPiece made here, and mistral-common's two where it is installed."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizerFast

    lines = (line.decode() for line in corpus.open("rb"))
    piece = BertWordPieceTokenizer(lowercase=False)
    piece.train_from_iterator(itertools.islice(lines, 1500), vocab_size=8000)
    folder = work / "wordpiece"
    BertTokenizerFast(tokenizer_object=piece._tokenizer, eos_token="[SEP]").save_pretrained(folder)
    yield (
        "WordPiece, 8k",
        folder,
        ("--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", str(folder)),
    )
    try:
        import mistral_common
    except ImportError:
        print("mistral-common is not installed: its tokenizers are left out", file=sys.stderr)
        return
    data = Path(mistral_common.__file__).parent / "data"
    model = next(iter(sorted(data.glob("*.model*"))))
    yield (
        f"SentencePiece ({model.name})",
        model,
        ("--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model", str(model)),
    )
    tekken = data / "tekken_240911.json"
    vocabulary = work / "vocabulary.json"
    vocabulary.write_text(json.dumps(json.loads(tekken.read_text())["vocab"]))
    theirs = ("--tokenizer-type", "TikTokenizer", "--tokenizer-model", str(vocabulary))
    size = ("--tiktoken-pattern", "v2", "--tiktoken-num-special-tokens", "1000")
    yield "tekken, 131k", tekken, (*theirs, *size, "--vocab-size", "131072")


if __name__ == "__main__":
    main()
