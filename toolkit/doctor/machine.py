"""Cores, memory, shared memory, disk, and the limits of this process."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

from toolkit.doctor.facts import Torch
from toolkit.doctor.finding import Finding

GIB = 1 << 30
CGROUP = Path("/sys/fs/cgroup")
SHARED_MEMORY = Path("/dev/shm")
OPEN_FILES = 4096
"""Data loaders and NCCL keep a descriptor for each shared tensor and each connection."""


def check_cores(torch: Torch) -> Iterator[Finding]:
    """How many cores this process may use: its affinity, and the container's quota."""
    usable, there = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    quota = cpu_quota()
    allowed = min(usable, quota) if quota else float(usable)
    detail = f"{allowed:g} of {there}" if allowed < there else f"{there}"
    if allowed < 2:
        yield Finding("CPU cores", "warn", detail, "two ranks at once will take turns: give it two")
    else:
        yield Finding("CPU cores", "ok", detail)


def cpu_quota() -> float | None:
    """The container's limit in cores (cgroup v2 ``cpu.max``), or None."""
    quota, _, period = _read(CGROUP / "cpu.max").partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def _read(path: Path) -> str:
    return path.read_text().strip() if path.is_file() else ""


def memory() -> tuple[int, int]:
    """Bytes this process may use at most, and bytes available now; a container's limit counts."""
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    total, free = (int(lines[k].split()[0]) * 1024 for k in ("MemTotal", "MemAvailable"))
    limit, used = _read(CGROUP / "memory.max"), _read(CGROUP / "memory.current")
    if limit.isdigit() and used.isdigit() and int(limit) < total:
        return int(limit), min(free, int(limit) - int(used))
    return total, free


def check_memory(torch: Torch) -> Iterator[Finding]:
    """Enough memory for the mini pipeline."""
    total, free = memory()
    detail = f"{free / GIB:.1f} GiB available of {total / GIB:.1f}"
    if free < 6 * GIB:
        yield Finding("memory", "warn", detail, "configs/mini.yaml is meant to fit into 6 GiB")
    else:
        yield Finding("memory", "ok", detail)


def check_shared_memory(torch: Torch) -> Iterator[Finding]:
    """/dev/shm is large enough for NCCL and for data loaders' workers."""
    if not SHARED_MEMORY.is_dir():
        yield Finding("/dev/shm", "warn", "missing", "mount a tmpfs there")
        return
    size = shutil.disk_usage(SHARED_MEMORY)
    detail = f"{size.free / GIB:.2f} GiB free of {size.total / GIB:.2f}"
    wanted = max(1, len(torch.gpus)) * GIB
    if size.free < wanted:
        yield Finding(
            "/dev/shm",
            "warn",
            detail,
            f"NCCL and data loaders pass tensors through it; give it {wanted // GIB} GiB or more:"
            " --ipc host or --shm-size (Docker), an emptyDir with medium Memory (Kubernetes)",
        )
    else:
        yield Finding("/dev/shm", "ok", detail)


def check_disk(torch: Torch) -> Iterator[Finding]:
    """The current folder, where runs/ goes, can be written and has room."""
    here = Path.cwd()
    size = shutil.disk_usage(here)
    detail = f"{size.free / GIB:.1f} GiB free of {size.total / GIB:.1f} in {here}"
    if not os.access(here, os.W_OK):
        yield Finding(
            "disk", "warn", f"{here} can't be written", "runs go elsewhere with --run-dir"
        )
    elif size.free < 10 * GIB:
        yield Finding("disk", "warn", detail, "a checkpoint takes 16 bytes or so per parameter")
    else:
        yield Finding("disk", "ok", detail)


def check_limits(torch: Torch) -> Iterator[Finding]:
    """ulimit -l, which RDMA needs unlimited, and ulimit -n."""
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    network = Path("/sys/class/infiniband")
    adapters = sorted(p.name for p in network.iterdir()) if network.is_dir() else []
    unlimited = locked == resource.RLIM_INFINITY
    detail = f"ulimit -l {'unlimited' if unlimited else f'{locked // 1024:,} KiB'}"
    if adapters and not unlimited:
        yield Finding(
            "locked memory",
            "warn",
            f"{detail}, with {', '.join(adapters)}",
            "RDMA pins its buffers: memlock unlimited in limits.conf and for slurmd, --ulimit"
            " memlock=-1 (Docker)",
        )
    else:
        yield Finding("locked memory", "ok" if unlimited else "info", detail)
    if files < OPEN_FILES and torch.gpus:
        yield Finding(
            "open files", "warn", f"ulimit -n {files:,}", f"ulimit -n {min(most, 65536)} in the job"
        )
    else:
        yield Finding("open files", "ok", f"ulimit -n {files:,}")
