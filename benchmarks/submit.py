"""How long rendering and submitting a pipeline of 50 stages takes, beside Slurm's own time.

    python benchmarks/submit.py [--stages 50] [--runs 5]

It needs a Slurm that answers, with the partition of configs/clusters/lab.yaml; it cancels what it
sends. Slurm's time is that of its commands (sbatch, squeue), from their start to their end.

The limits it is held to, each in the best run: rendering 1 s, submitting 3 s beside Slurm.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TIMED = """\
import json, sys, time
begun = time.perf_counter()
from toolkit.cli import main
from toolkit.launch import slurm
calls, call = [], slurm.call
def timed(*words, **options):
    started = time.perf_counter()
    try:
        return call(*words, **options)
    finally:
        calls.append(time.perf_counter() - started)
slurm.call = timed
try:
    main()
except SystemExit as end:
    found = {"whole": time.perf_counter() - begun, "slurm": sum(calls), "calls": len(calls)}
    print(json.dumps(found | {"cpu": time.process_time()}), file=sys.stderr)
    raise
"""
LIMITS = {"render": 1.0, "submit": 3.0}


def pipeline(stages: int) -> str:
    """A tokenizer, and stages of one job each that take it."""
    one = "sources: [a.txt], tokenizer: vocabulary, resources: {nodes: 1, ntasks_per_node: 1}"
    return "\n".join(
        [
            "name: big",
            "stages:",
            "  vocabulary: {kind: train-tokenizer, sources: [a.txt], vocab_size: 300}",
            *(f"  corpus-{number}: {{kind: tokenize, {one}}}" for number in range(1, stages)),
        ]
    )


def timed(folder: Path, *words: str) -> dict[str, float]:
    """One command: ``whole`` seconds, those in ``slurm`` and its ``calls``, and ``cpu`` seconds."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", TIMED, *words]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"toolkit {' '.join(words)}:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stderr.splitlines()[-1])
    return found


def measure(folder: Path, stages: int, runs: int) -> dict[str, list[dict[str, float]]]:
    """Each command several times, in turn."""
    (folder / "p.yaml").write_text(pipeline(stages))
    (folder / "a.txt").write_text("many words\n" * 100)
    on = ("p.yaml", "--cluster", "lab")
    found: dict[str, list[dict[str, float]]] = {"render": [], "submit": []}
    for number in range(runs):
        run = f"runs/{number}"
        found["render"].append(timed(folder, "render", *on, "-o", f"scripts/{number}"))
        found["submit"].append(timed(folder, "submit", *on, "--run-dir", run))
        timed(folder, "cancel", run)
    return found


def main() -> None:
    """Measure render and submit, and print one table; ends with 1 where a limit is passed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stages", type=int, default=50)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    if shutil.which("sbatch") is None:
        sys.exit("there is no sbatch here: this measures beside a Slurm that answers")
    with tempfile.TemporaryDirectory(prefix="toolkit-submit-") as name:
        times = measure(Path(name), arguments.stages, arguments.runs)
    print("| command | whole, median s | in Slurm's commands | beside: median, best s | CPU s |")
    print("|---|---|---|---|---|")
    late = False
    for verb, found in times.items():
        middle = {key: statistics.median(one[key] for one in found) for key in found[0]}
        beside = [one["whole"] - one["slurm"] for one in found]
        calls = f"{middle['slurm']:.2f} s, {middle['calls']:.0f} calls"
        own = f"{statistics.median(beside):.2f}, {min(beside):.2f} (limit {LIMITS[verb]:.0f})"
        print(f"| `{verb}` | {middle['whole']:.2f} | {calls} | {own} | {middle['cpu']:.2f} |")
        late |= min(beside) > LIMITS[verb]
    sys.exit(1 if late else 0)


if __name__ == "__main__":
    main()
