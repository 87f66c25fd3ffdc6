"""How long the command line takes to answer, against a bare interpreter, in one run.

    python benchmarks/startup.py [--runs 10]

The limits it is held to: ``--help`` under 0.4 s, ``check`` and ``plan`` of
configs/mini.yaml under 0.6 s.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLKIT = Path(sys.executable).parent / "toolkit"
COMMANDS: dict[str, list[str]] = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "toolkit --help": [str(TOOLKIT), "--help"],
    "toolkit check configs/mini.yaml": [str(TOOLKIT), "check", "configs/mini.yaml"],
    "toolkit plan configs/mini.yaml --cluster dgx-h100": [
        str(TOOLKIT),
        "plan",
        "configs/mini.yaml",
        "--cluster",
        "dgx-h100",
    ],
}


def seconds(command: list[str]) -> float:
    """Wall time of one run."""
    started = time.perf_counter()
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def main() -> None:
    """Measure the commands in turn, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    runs = parser.parse_args().runs
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(runs):
        for name, command in COMMANDS.items():
            times[name].append(seconds(command))
    bare = statistics.median(times["python -c pass"])
    print("| command | median s | worst s | over bare Python |")
    print("|---|---|---|---|")
    for name, found in times.items():
        middle = statistics.median(found)
        print(f"| `{name}` | {middle:.2f} | {max(found):.2f} | {middle / bare:.1f}x |")


if __name__ == "__main__":
    main()
