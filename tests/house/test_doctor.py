"""The doctor's findings on this machine, and on machines made up of fake commands and packages."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import pytest
from rich.console import Console

from toolkit import doctor
from toolkit.doctor import accelerator, clusters, facts, machine, software
from toolkit.doctor.facts import GPU, Torch
from toolkit.doctor.finding import Check, Finding, ask

H200 = GPU("NVIDIA H200", 150_754_820_096, (9, 0))
CPU = Torch(installed=True, version="2.13.0+cpu", gloo=True)
CUDA = Torch(installed=True, version="2.13.0", cuda="13.0", nccl="2.29.7", gloo=True, driver=13010)
HOPPER = Torch(
    installed=True,
    version="2.13.0",
    cuda="13.0",
    driver=13010,
    gloo=True,
    gpus=(H200, H200),
    architectures=("sm_80", "sm_90", "compute_120"),
)

Fake = Callable[..., None]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """``fake("sbatch", "echo slurm 24.05")`` puts a shell script on a PATH of fakes alone."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def make(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return make


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages that comes first in ``sys.path``."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


def found(check: Check, torch: Torch = CPU) -> dict[str, Finding]:
    return {finding.name: finding for finding in check(torch)}


def test_this_machine_has_no_failure_and_no_broken_check() -> None:
    findings = doctor.diagnose()
    broken = [f for f in findings if f.status == "fail" or "the check broke" in f.detail]
    assert not broken
    names = {f.name for f in findings}
    assert {"Python", "torch", "megatron-core", "GPUs", "/dev/shm", "Slurm"} <= names
    torch = next(f for f in findings if f.name == "torch")
    assert torch.status == "ok" and metadata.version("torch") in torch.detail


def test_a_login_node_without_torch_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    real = software.version_of
    light = {"megatron-toolkit", *(p.requirement.name for p in software.requirements())}
    monkeypatch.setattr(software, "version_of", lambda n: real(n) if n in light else None)
    findings = [f for check in doctor.CHECKS for f in doctor.examine(check, Torch())]
    assert not [f for f in findings if f.status == "fail"]
    by_name = {f.name: f for f in findings}
    assert by_name["torch"].status == "info" and "submit" in by_name["torch"].detail
    assert by_name["training stack"].status == "info"
    assert by_name["megatron-toolkit"].status == "ok"


def test_a_check_that_breaks_is_a_finding() -> None:
    def check_gravity(torch: Torch) -> Iterator[Finding]:
        raise ZeroDivisionError("no mass")
        yield

    [finding] = doctor.examine(check_gravity, CPU)
    assert finding.status == "fail"
    assert finding.name == "gravity" and "ZeroDivisionError: no mass" in finding.detail


def test_the_table_holds_every_finding() -> None:
    findings = [Finding("one", "ok", "fine"), Finding("two", "fail", "broken", "mend it")]
    output = io.StringIO()
    Console(width=60, file=output).print(doctor.render(findings))
    text = output.getvalue()
    assert all(word in text for word in ("one", "fine", "two", "broken", "-> mend it"))
    assert "1 ok, 0 for information, 0 warnings, 1 failure" in text


# Software


def test_versions_out_of_range_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    real = software.version_of
    monkeypatch.setattr(software, "version_of", lambda n: "0.9.0" if n == "trl" else real(n))
    finding = found(software.check_training_stack)["training stack"]
    assert finding.status == "fail"
    assert "trl 0.9.0" in finding.detail and ">=1.16" in finding.detail
    assert "pip install 'trl" in finding.advice


def test_builds_of_nvidia_are_in_range() -> None:
    built = Torch(installed=True, version="2.14.0a0+b2c75dd062.nv26.09", cuda="13.4", gloo=True)
    assert found(software.check_torch, built)["torch"].status == "ok"
    old = Torch(installed=True, version="2.4.0", gloo=True)
    assert found(software.check_torch, old)["torch"].status == "fail"


def test_a_broken_torch_fails_with_its_reason() -> None:
    broken = Torch(installed=True, error="ImportError: libcudart.so.13: cannot open shared object")
    finding = found(software.check_torch, broken)["torch"]
    assert finding.status == "fail" and "libcudart.so.13" in finding.detail


@pytest.mark.parametrize(
    ("version", "status"), [((3, 10, 1), "fail"), ((3, 12, 0), "ok"), ((3, 14, 0), "warn")]
)
def test_python_versions(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, int, int], status: str
) -> None:
    monkeypatch.setattr(sys, "version_info", version)
    assert found(software.check_python)["Python"].status == status


# torch, asked in a process of its own


def test_torch_is_described_by_another_process() -> None:
    described = facts.torch_facts()
    assert described.error == ""
    assert described.version == metadata.version("torch") and described.gloo


@pytest.mark.parametrize(
    ("script", "seconds", "reason"),
    [
        ("exec sleep 60", 0.3, "no answer within 0.3 s"),
        ("echo 'CUDA error: 999' >&2; exit 1", 30.0, "CUDA error: 999"),
        ("kill -SEGV $$", 30.0, "exit code -11"),
    ],
)
def test_a_torch_that_hangs_or_crashes_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, seconds: float, reason: str
) -> None:
    interpreter = tmp_path / "python"
    interpreter.write_text(f"#!/bin/sh\n{script}\n")
    interpreter.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    monkeypatch.setattr(facts, "SECONDS", seconds)
    described = facts.torch_facts()
    assert described.installed and reason in described.error


def test_imports_are_tried_in_another_process(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (site / "halfbuilt.py").write_text("raise OSError('undefined symbol: _ZN3c10')\n")
    monkeypatch.setenv("PYTHONPATH", str(site))
    assert accelerator.try_import("halfbuilt") == "OSError: undefined symbol: _ZN3c10"
    assert accelerator.try_import("json") == ""


# apex


def test_the_index_s_apex_is_told_from_nvidia_s_without_importing_it(site: Path) -> None:
    (site / "apex").mkdir()
    (site / "apex" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    info = site / "apex-0.9.10.dev0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: apex\nVersion: 0.9.10.dev0\nSummary: A toolkit for Pyramid\n"
    )
    finding = found(accelerator.check_apex)["apex"]
    assert finding.status == "fail"
    assert "not NVIDIA's" in finding.detail and "Pyramid" in finding.detail
    assert finding.advice.startswith("pip uninstall --yes apex")
    assert "apex" not in sys.modules


def test_nvidia_s_apex_is_known_by_its_contents(site: Path) -> None:
    (site / "apex" / "optimizers").mkdir(parents=True)
    (site / "apex" / "__init__.py").touch()
    (site / "apex" / "optimizers" / "fused_adam.py").touch()
    assert "without compiled kernels" in found(accelerator.check_apex)["apex"].detail
    (site / "fused_weight_gradient_mlp_cuda.py").touch()
    finding = found(accelerator.check_apex)["apex"]
    assert finding.status == "ok" and "fused_weight_gradient_mlp_cuda" in finding.detail
    assert "from apex" in found(accelerator.check_kernels, HOPPER)["gradient accumulation"].detail


# GPUs


def test_gpus_are_counted_and_described(fake: Fake) -> None:
    fake("nvidia-smi", "echo 'NVIDIA H200, 580.159.03'; echo 'NVIDIA H200, 580.159.03'")
    finding = found(accelerator.check_gpus, HOPPER)["GPUs"]
    assert finding.status == "ok"
    assert "2 x NVIDIA H200, 140.4 GiB, compute capability 9.0" in finding.detail
    assert "driver 580.159.03, for CUDA 13.1" in finding.detail


def test_a_driver_too_old_for_torch_fails_with_torch_s_words(fake: Fake) -> None:
    fake("nvidia-smi", "echo 'NVIDIA A100, 470.57.02'")
    torch = Torch(installed=True, version="2.13.0", cuda="13.0", complaints=("driver is too old",))
    finding = found(accelerator.check_gpus, torch)["GPUs"]
    assert finding.status == "fail" and "driver is too old" in finding.detail


def test_a_cpu_build_beside_gpus_is_warned_of(fake: Fake) -> None:
    fake("nvidia-smi", "echo 'NVIDIA H200, 580.159.03'")
    assert found(accelerator.check_gpus, CPU)["GPUs"].status == "warn"


def test_no_gpu_is_for_information(fake: Fake) -> None:
    assert found(accelerator.check_gpus, CPU)["GPUs"].status == "info"
    assert "--gpus all" in found(accelerator.check_gpus, CUDA)["GPUs"].advice


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((9, 0), ("sm_80", "sm_90"), True),
        ((8, 6), ("sm_80",), True),
        ((8, 0), ("sm_86",), False),
        ((10, 0), ("sm_90",), False),
        ((10, 0), ("sm_90", "compute_90"), True),
        ((9, 0), ("sm_90a",), True),
        ((10, 3), ("sm_100f",), True),
        ((10, 3), ("sm_100a",), False),
        ((12, 0), ("sm_100f",), False),
    ],
)
def test_which_code_runs_on_which_gpu(
    capability: tuple[int, int], architectures: tuple[str, ...], runs: bool
) -> None:
    assert accelerator.runs_on(GPU("some", 1, capability), architectures) is runs


def test_a_torch_without_kernels_for_the_gpu_fails(fake: Fake) -> None:
    blackwell = GPU("NVIDIA B200", 190 << 30, (10, 0))
    torch = Torch(
        installed=True, cuda="12.4", driver=13000, gpus=(blackwell,), architectures=("sm_90",)
    )
    finding = found(accelerator.check_gpus, torch)["GPUs"]
    assert finding.status == "fail" and "no kernels for NVIDIA B200" in finding.detail


def test_gpus_want_transformer_engine(site: Path) -> None:
    assert found(accelerator.check_transformer_engine, CPU)["TransformerEngine"].status == "info"
    missing = found(accelerator.check_transformer_engine, HOPPER)["TransformerEngine"]
    assert missing.status == "fail" and "pretrain on a GPU needs it" in missing.detail


def test_a_transformer_engine_built_for_another_torch_fails(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = site / "transformer_engine-2.19.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: transformer-engine\nVersion: 2.19.0\n"
    )
    package = site / "transformer_engine" / "pytorch"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").write_text("raise ImportError('undefined symbol: _ZN2at')\n")
    monkeypatch.setenv("PYTHONPATH", str(site))
    finding = found(accelerator.check_transformer_engine, HOPPER)["TransformerEngine"]
    assert finding.status == "fail"
    assert "undefined symbol: _ZN2at" in finding.detail and "2.13.0" in finding.advice
    kernels = found(accelerator.check_kernels, HOPPER)
    assert kernels["Adam"].detail == "fused, from TransformerEngine"


# The machine


Usage = namedtuple("Usage", "total used free")


def test_docker_s_default_shared_memory_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(64 << 20, 0, 64 << 20))
    finding = found(machine.check_shared_memory)["/dev/shm"]
    assert finding.status == "warn" and "--shm-size" in finding.advice
    assert found(machine.check_disk)["disk"].status == "warn"


def test_a_container_s_limits_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "memory.max").write_text(f"{3 << 30}\n")
    (tmp_path / "memory.current").write_text(f"{1 << 30}\n")
    assert machine.cpu_quota() == 1.5
    assert found(machine.check_cores)["CPU cores"].status == "warn"
    assert machine.memory()[0] == 3 << 30
    assert found(machine.check_memory)["memory"].status == "warn"
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.cpu_quota() is None
    assert machine.memory()[0] > 3 << 30


# Schedulers


def test_a_slurm_login_node(fake: Fake) -> None:
    fake("sbatch", "echo slurm 24.05.4")
    fake("scontrol", "echo Slurmctld primary at head is UP")
    fake("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    fake("srun", "echo '--container-image=IMAGE'")
    findings = found(clusters.check_slurm)
    assert findings["Slurm"].status == "ok" and "24.05.4" in findings["Slurm"].detail
    assert findings["Slurm accounting"].status == "warn"
    assert "storage is disabled" in findings["Slurm accounting"].detail
    assert findings["Pyxis"].status == "ok"


def test_a_slurm_that_is_down_is_warned_of(fake: Fake) -> None:
    fake("sbatch", "echo slurm 24.05.4")
    fake("scontrol", "echo Slurmctld primary at head is DOWN")
    finding = found(clusters.check_slurm)["Slurm"]
    assert finding.status == "warn" and "DOWN" in finding.detail


def test_kubernetes_contexts(fake: Fake) -> None:
    assert found(clusters.check_kubernetes)["Kubernetes"].detail == "no kubectl here"
    versions = {"clientVersion": {"gitVersion": "v1.34.1"}}
    client = json.dumps(versions)
    both = json.dumps(versions | {"serverVersion": {"gitVersion": "v1.33.0"}})
    script = f"""case "$*" in
      *--client*) echo '{client}' ;;
      *current-context) CONTEXT ;;
      *) ANSWER ;;
    esac"""
    fake("kubectl", script.replace("CONTEXT", "echo not set >&2; exit 1"))
    assert found(clusters.check_kubernetes)["Kubernetes"].status == "info"
    reached = script.replace("CONTEXT", "echo prod")
    fake("kubectl", reached.replace("ANSWER", f"echo '{both}'"))
    finding = found(clusters.check_kubernetes)["Kubernetes"]
    assert finding.detail == "kubectl v1.34.1, context prod, server v1.33.0"
    fake("kubectl", reached.replace("ANSWER", "echo Unauthorized >&2; exit 1"))
    finding = found(clusters.check_kubernetes)["Kubernetes"]
    assert finding.status == "warn" and "Unauthorized" in finding.detail


def test_container_runtimes(fake: Fake) -> None:
    assert found(clusters.check_containers)["containers"].status == "info"
    fake("apptainer", "echo apptainer version 1.4.2")
    assert "apptainer version 1.4.2" in found(clusters.check_containers)["containers"].detail


def test_a_command_that_hangs_is_given_up(fake: Fake) -> None:
    fake("sacct", "exec /bin/sleep 30")
    answer = ask(["sacct"], seconds=0.2)
    assert answer is not None and not answer.ok
    assert answer.line == "no answer within 0.2 s"
