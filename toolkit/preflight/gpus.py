"""What one rank sees of its GPUs: the only file of the preflight that knows NVIDIA's tools.

``nvidia-smi`` is NVML's own client: it comes with the driver, into containers, too, and needs no
package of Python's. Its documented CSV queries are used, with fields of every driver since R450.
"""

from __future__ import annotations

import csv
import os
import re
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.preflight.report import Finding

GPU_FIELDS = (
    "index",
    "uuid",
    "name",
    "driver_version",
    "memory.total",
    "memory.used",
    "ecc.errors.uncorrected.volatile.total",
    "retired_pages.pending",
)
ROW_FIELDS = ("gpu_uuid", "remapped_rows.pending", "remapped_rows.failure")
"""Of GPUs from A100 on; ``--help-query-remapped-rows``. Either needs a reset, or another board:
NVIDIA GPU Memory Error Management, "Row-remapping"."""
APP_FIELDS = ("gpu_uuid", "pid", "process_name", "used_gpu_memory")
MEMORY_IN_USE = 0.05
"""Of a GPU's memory, by nobody that is known: the driver's own part is below 2 %."""
SECONDS = 60.0
"""Without the persistence daemon a query first loads the driver's state for each GPU: seconds."""
MISSING = "is not here"
PATIENCE = 5
"""Looks, two seconds apart, at who is on the GPUs: the job before may be about to end there."""
XID_DAYS = 1.0
"""Older messages are of GPUs that worked since, or were reset."""
XIDS = {
    46: "the GPU stopped processing",
    48: "double-bit ECC error",
    62: "internal micro-controller halt",
    64: "row remapping failed",
    74: "NVLink error",
    79: "fallen off the bus",
    92: "high rate of single-bit ECC errors",
    95: "uncontained ECC error",
    119: "GSP does not answer",
    120: "GSP error",
    140: "unrecovered ECC error",
}
"""Those that NVIDIA's catalog of Xid errors lays on hardware or the driver. 13, 31, 43, 45 and 94
are a program's, or end with it."""
_XID = re.compile(r"\[\s*(\d+\.\d+)\].*NVRM: Xid \((PCI:[0-9a-fA-F:.]+)[^)]*\): (\d+)")


def driver() -> tuple[list[dict[str, str]], Finding | None]:
    """What the driver says of each GPU of this node that the job may see; or why it does not."""
    text, wrong = _ask("nvidia-smi", f"--query-gpu={','.join(GPU_FIELDS)}", *_CSV)
    if wrong == MISSING:  # an image without the tool: torch says whether there are GPUs
        return [], Finding("GPUs", f"health not known: nvidia-smi {wrong}")
    if wrong:
        return [], Finding("GPUs", f"nvidia-smi {wrong}", failed=True)
    return visible(parse_csv(text, GPU_FIELDS), os.environ.get("CUDA_VISIBLE_DEVICES")), None


def visible(known: list[dict[str, str]], named: str | None) -> list[dict[str, str]]:
    """The GPUs that CUDA_VISIBLE_DEVICES names, by index or UUID: the job's, on a shared node.

    All of them where it names one that is not there: a container, or Slurm's cgroup, shows the
    job's GPUs alone, and may count them anew.
    """
    names = [name.strip() for name in (named or "").split(",") if name.strip()]
    chosen = [gpu for gpu in known if gpu["index"] in names or gpu["uuid"] in names]
    return chosen if names and len(chosen) == len(names) else known


def look_at_gpus(known: Sequence[Mapping[str, str]], wanted: int) -> Iterator[Finding]:
    """Count, ECC, row remapping, Xid, and who else is there; for one rank of each node.

    To be called before this node's ranks use their GPUs: whatever runs on them is somebody else's.

    Args:
        known: by ``driver``.
        wanted: GPUs that the job has asked for on each node.
    """
    names = ", ".join(sorted({gpu["name"] for gpu in known})) or "none"
    count = Finding("GPUs", f"{len(known)} ({names})")
    if len(known) < wanted:
        count = Finding("GPUs", f"{count.detail}, where the job asked for {wanted}", failed=True)
    yield count
    yield ecc(known)
    own = {gpu["uuid"] for gpu in known}
    rows = _ask("nvidia-smi", f"--query-remapped-rows={','.join(ROW_FIELDS)}", *_CSV)
    yield remapping(rows, own)
    for look in range(PATIENCE):
        apps = _ask("nvidia-smi", f"--query-compute-apps={','.join(APP_FIELDS)}", *_CSV)
        found = [others(apps, own), memory(known)]
        if not any(finding.failed for finding in found) or look == PATIENCE - 1:
            break
        time.sleep(2)
        known = driver()[0]
    yield from found
    yield xids(_ask("dmesg"), float(Path("/proc/uptime").read_text().split()[0]))


def ecc(known: Sequence[Mapping[str, str]]) -> Finding:
    """Uncorrected errors since the driver was loaded, and pages that wait to be retired."""
    wrong = []
    for gpu in known:
        errors, pages = (gpu[name] for name in GPU_FIELDS[-2:])
        if errors.isdigit() and int(errors):
            wrong.append(f"{gpu['uuid']} has {errors} uncorrected errors since it was reset")
        if _yes(pages):
            wrong.append(f"{gpu['uuid']} has pages that wait for a reset to be retired")
    return Finding("ECC", "; ".join(wrong) or "clean", failed=bool(wrong))


def memory(known: Sequence[Mapping[str, str]]) -> Finding:
    """Memory in use although nothing of this job's has begun."""
    used = [
        f"{gpu['uuid']}: {gpu['memory.used']} of {gpu['memory.total']} MiB in use"
        for gpu in known
        if gpu["memory.used"].isdigit()
        and int(gpu["memory.used"]) > MEMORY_IN_USE * float(gpu["memory.total"])
    ]
    return Finding("GPU memory", "; ".join(used) or "free", failed=bool(used))


def remapping(answer: tuple[str, str], own: Collection[str]) -> Finding:
    """Rows of memory that wait for a reset, or could not be remapped."""
    text, wrong = answer
    if wrong:
        return Finding("row remapping", f"not known: nvidia-smi {wrong}")
    bad = []
    for gpu in parse_csv(text, ROW_FIELDS):
        if gpu["gpu_uuid"] not in own:
            continue
        if _yes(gpu["remapped_rows.pending"]):
            bad.append(f"{gpu['gpu_uuid']} waits for a reset")
        if _yes(gpu["remapped_rows.failure"]):
            bad.append(f"{gpu['gpu_uuid']} has rows that can't be remapped")
    return Finding("row remapping", "; ".join(bad) or "none waits", failed=bool(bad))


def others(answer: tuple[str, str], own: Collection[str]) -> Finding:
    """Processes on the GPUs before any of this job's."""
    text, wrong = answer
    if wrong:
        return Finding("GPU processes", f"not known: nvidia-smi {wrong}")
    found = [
        f"{app['process_name']} (pid {app['pid']}) on {app['gpu_uuid']}"
        for app in parse_csv(text, APP_FIELDS)
        if app["gpu_uuid"] in own
    ]
    return Finding("GPU processes", "; ".join(found) or "none", failed=bool(found))


def xids(answer: tuple[str, str], uptime: float) -> Finding:
    """Xid errors of the last day that hardware or the driver has made, on any GPU of the node.

    One that fell off the bus is in no list of GPUs any more.

    Args:
        answer: of ``dmesg``, with seconds since the start of the machine.
        uptime: those seconds now.
    """
    text, wrong = answer
    if wrong:
        return Finding("Xid", f"not known: dmesg {wrong}")
    found = {}
    for stamp, place, code in _XID.findall(text):
        if int(code) in XIDS and uptime - float(stamp) < XID_DAYS * 86_400:
            hours = (uptime - float(stamp)) / 3600
            found[place, code] = f"{code} ({XIDS[int(code)]}) of {place}, {hours:.1f} h ago"
    return Finding("Xid", "; ".join(found.values()) or "none", failed=bool(found))


def parse_csv(text: str, fields: Sequence[str]) -> list[dict[str, str]]:
    """The rows of nvidia-smi's ``--format=csv,noheader,nounits``, by the fields asked for."""
    rows = csv.reader(text.splitlines(), skipinitialspace=True)
    return [
        dict(zip(fields, (value.strip() for value in row), strict=True))
        for row in rows
        if len(row) == len(fields)
    ]


_CSV = ("--format=csv,noheader,nounits",)


def _yes(value: str) -> bool:
    """Drivers write Yes, 1, Pending; No, 0, [N/A]."""
    return value.lower() in ("yes", "1", "pending", "true")


def _ask(*command: str) -> tuple[str, str]:
    """A command's output, and in case why there is none."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",  # a kernel's log may hold any byte
            timeout=SECONDS,
            check=False,
        )
    except FileNotFoundError:
        return "", MISSING
    except OSError as error:
        return "", f"can't be started: {error.strerror}"
    except subprocess.TimeoutExpired:
        return "", f"gave no answer within {SECONDS:.0f} s"
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["no word"]
        return "", f"ended with {done.returncode}: {said[-1]}"
    return done.stdout, ""


def use_gpu(local_rank: int, wanted: int) -> tuple[list[Finding], str | None, dict[str, str]]:
    """Whether torch sees the GPUs, and can compute on this rank's.

    Returns:
        findings, the UUID of this rank's GPU, and the versions that torch knows.
    """
    import torch

    built = {"CUDA of torch": torch.version.cuda or "none"}
    try:
        return _compute(local_rank, wanted, built)
    except RuntimeError as error:  # of CUDA's driver: torch raises no other
        said = str(error).strip().partition("\n")[0]
        return [Finding("torch", f"fails on GPU {local_rank}: {said}", failed=True)], None, built


def _compute(
    local_rank: int, wanted: int, built: dict[str, str]
) -> tuple[list[Finding], str | None, dict[str, str]]:
    import torch

    if not torch.cuda.is_available():
        return [Finding("torch", "sees no GPU", failed=True)], None, built
    seen = torch.cuda.device_count()
    if seen < wanted or local_rank >= seen:
        detail = f"sees {seen} GPUs, where {wanted} were asked for, and rank {local_rank} needs one"
        return [Finding("torch", detail, failed=True)], None, built
    properties: Any = torch.cuda.get_device_properties(local_rank)
    torch.cuda.set_device(local_rank)
    ones = torch.ones(1024, 1024, device="cuda")
    right = bool(((ones @ ones) == 1024).all().item())
    found = Finding("torch", f"computes on {properties.name}" if right else "computes wrongly")
    nccl = ".".join(map(str, torch.cuda.nccl.version()))
    uuid = f"GPU-{properties.uuid}" if hasattr(properties, "uuid") else None
    failed = Finding("torch", f"computes wrongly on GPU {local_rank}", failed=True)
    return [found if right else failed], uuid, built | {"NCCL": nccl}
