"""Checks the GPU path on a real GPU: parity with the CPU's loss, FP8, throughput and MFU.

    python benchmarks/gpu_check.py [--run-dir DIR] [--smoke] [key=value ...]

Runs ``configs/gpu-check.yaml`` stage by stage, as a user would, and prints two tables: how far each
precision's loss is from the CPU's fp32 run of the same seed, on packed rows too, and tokens/s,
TFLOP/s, MFU and memory of a 1.0B model, with what ``toolkit plan`` says of the last two. A stage
that fails is a row that says so. ``--smoke`` runs everything on the CPU with tiny sizes, to see
that the script itself works; its figures mean nothing.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from toolkit.errors import ToolkitError
from toolkit.pipeline.state import read_state
from toolkit.plan.calibration import calibrate
from toolkit.plan.hardware import Hardware, find_gpu
from toolkit.plan.measured import read_measured
from toolkit.tracking import read_metrics

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "gpu-check.yaml"
PARITY = {
    "parity-gpu-fp32": "parity-cpu-fp32",
    "parity-gpu-bf16": "parity-cpu-fp32",
    "parity-gpu-fp8-delayed": "parity-cpu-fp32",
    "parity-gpu-fp8-tensorwise": "parity-cpu-fp32",
    "packed-gpu-bf16": "packed-cpu-fp32",
}
"""Stages, and the reference of each. Packed rows meet another attention there: TransformerEngine's,
which is told where examples begin, where the CPU's has a dense mask."""
REFERENCES = tuple(dict.fromkeys(PARITY.values()))
THROUGHPUT = ("throughput-gpu-bf16", "throughput-gpu-fp8")
TINY = "{num_layers: 2, hidden_size: 64, num_attention_heads: 4, max_position_embeddings: 64}"


def smoke_overrides() -> list[str]:
    """Overrides that make every stage tiny, and leave FP8 out."""
    found = ["stages.packed.seq_length=64"]
    for stage in (*REFERENCES, *PARITY, *THROUGHPUT):
        prefix = f"stages.{stage}"
        found += [f"{prefix}.model={TINY}", f"{prefix}.train_iters=3", f"{prefix}.eval_iters=1"]
        found += [f"{prefix}.precision=fp32", f"{prefix}.fp8=", f"{prefix}.log_interval=1"]
    return found


def run_stage(stage: str, run_dir: Path, overrides: list[str], device: str | None) -> None:
    """Run one stage (and what it needs); a failure is seen in its state."""
    command = [sys.executable, "-c", "from toolkit.cli import main; main()", "run", str(CONFIG)]
    command += ["--run-dir", str(run_dir), *overrides]
    for name in ("vocabulary", "corpus", "packed", stage):
        command += ["--only", name]
    environment = os.environ | ({"TOOLKIT_DEVICE": device} if device else {})
    subprocess.run(command, env=environment, check=False)


def losses(folder: Path) -> dict[int, float]:
    """Training loss by step."""
    return {r["step"]: r["loss"] for r in read_metrics(folder) if r.get("loss") is not None}


def parity_row(stage: str, run_dir: Path) -> str:
    """How far a precision's losses are from the reference's."""
    status = read_state(run_dir / stage).status
    ours, theirs = losses(run_dir / stage), losses(run_dir / PARITY[stage])
    common = sorted(ours.keys() & theirs.keys())
    if status != "complete" or not common:
        return f"| {stage} | {status} | | | |"
    gaps = [abs(ours[s] - theirs[s]) for s in common]
    last = common[-1]
    return (
        f"| {stage} | {ours[last]:.4f} | {theirs[last]:.4f}"
        f" | {max(gaps):.2e} | {sum(gaps) / len(gaps):.2e} |"
    )


def throughput_row(stage: str, run_dir: Path) -> str:
    """Speed of the last logged interval."""
    status = read_state(run_dir / stage).status
    rows: list[dict[str, Any]] = [
        r for r in read_metrics(run_dir / stage) if "tflops_per_second" in r
    ]
    if status != "complete" or not rows:
        return f"| {stage} | {status} | | | | | | |"
    row = rows[-1]
    mfu = f"{row['mfu']:.1%}" if row.get("mfu") is not None else "unknown peak"
    return (
        f"| {stage} | {row['tokens_per_second']:,.0f} | {row['tflops_per_second']:,.0f} | {mfu}"
        f" | {row['seconds_per_step']:.3f} | {row['memory_gib']:.1f} | {planned(run_dir / stage)} |"
    )


def planned(stage: Path) -> str:
    """Seconds of a step and GiB by plan, and the sustained share that would explain the seconds."""
    import torch

    if not torch.cuda.is_available():
        return "- | -"
    try:
        hardware = Hardware(find_gpu(torch.cuda.get_device_name()))
        found = calibrate(read_measured(stage), hardware)
    except ToolkitError as error:
        return f"{error.message} | -"
    fit, sustained = found.runs[0], found.hardware.tuning.sustained
    return f"{fit.before:.3f} ({sustained:.2f} sustained) | {fit.allocated_gib:.1f}"


def main() -> None:
    """Run every stage, and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run-dir", type=Path, default=None)
    parser.add_argument("--smoke", action="store_true", help="tiny, and on the CPU")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    run_dir = options.run_dir or Path(tempfile.mkdtemp(prefix="gpu-check-"))
    overrides = [*options.overrides, *(smoke_overrides() if options.smoke else [])]
    if not options.smoke:
        require_gpu()
    for stage in REFERENCES:
        run_stage(stage, run_dir, overrides, "cpu")
    for stage in (*PARITY, *THROUGHPUT):
        run_stage(stage, run_dir, overrides, "cpu" if options.smoke else None)
    print("\n| parity over 50 steps | last loss | CPU fp32 | largest gap | mean gap |")
    print("|---|---|---|---|---|")
    for stage in PARITY:
        print(parity_row(stage, run_dir))
    print(
        "\n| 1.0B model | tokens/s | TFLOP/s | MFU | s/step | GiB | planned s/step | planned GiB |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for stage in THROUGHPUT:
        print(throughput_row(stage, run_dir))
    print(f"\nrun: {run_dir}")


def require_gpu() -> None:
    """Leave with a word where there is no GPU, or no TransformerEngine to train with on it."""
    import importlib.util

    import torch

    if not torch.cuda.is_available():
        sys.exit("no GPU here: nothing was measured (--smoke tries the script on the CPU)")
    if importlib.util.find_spec("transformer_engine") is None:
        sys.exit("TransformerEngine is not installed: the GPU path trains with its layers")


if __name__ == "__main__":
    main()
