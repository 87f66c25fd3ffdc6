"""Python, and the packages that the project needs: there, and in range."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import Requirement
from packaging.version import Version

from toolkit.doctor.facts import Torch
from toolkit.doctor.finding import Finding, Status

PROJECT = "megatron-toolkit"
OLDEST, NEWEST = (3, 11), (3, 13)
OPTIONAL = {
    "slurm": "submitting by submitit (submit_with: submitit)",
    "k8s": "submitting to Kubernetes",
    "track": "metrics to W&B and MLflow",
}
"""What each optional extra is for. ``data``, ``train`` and ``gpu`` have checks of their own."""


@dataclass(frozen=True)
class Package:
    """A requirement of the project, and what is installed."""

    requirement: Requirement
    installed: str | None

    @property
    def in_range(self) -> bool:
        """Whether a version is installed that fits; builds such as ``2.14.0a0+nv`` count."""
        return self.installed is not None and self.requirement.specifier.contains(
            self.installed, prereleases=True
        )

    def __str__(self) -> str:
        return f"{self.requirement.name} {self.installed or 'missing'}"

    @property
    def wanted(self) -> str:
        """The range, such as ``trl<2,>=1.16``."""
        return f"{self.requirement.name}{self.requirement.specifier}"


def version_of(name: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def requirements(extra: str = "") -> list[Package]:
    """The project's own requirements: the core ones, or those that an extra adds."""
    try:
        declared = [Requirement(line) for line in metadata.requires(PROJECT) or ()]
    except metadata.PackageNotFoundError:
        return []
    return [Package(r, version_of(r.name)) for r in declared if _belongs(r, extra)]


def required(name: str, extra: str) -> Package:
    """One requirement of an extra; any version will do where the project is not installed."""
    found = (p for p in requirements(extra) if p.requirement.name == name)
    return next(found, Package(Requirement(name), version_of(name)))


def _belongs(requirement: Requirement, extra: str) -> bool:
    marker = requirement.marker
    if not extra:
        return marker is None or marker.evaluate({"extra": ""})
    return (
        marker is not None
        and marker.evaluate({"extra": extra})
        and not marker.evaluate({"extra": ""})
    )


def install(extra: str) -> str:
    """The advice that installs an extra."""
    return f"in the checkout: pip install -c constraints.txt -e '.[{extra}]'"


def check_python(torch: Torch) -> Iterator[Finding]:
    """The interpreter is one that the project and megatron-core's wheels support."""
    found = ".".join(map(str, sys.version_info[:3]))
    detail = f"{found}, {sys.executable}"
    if sys.version_info[:2] < OLDEST:
        yield Finding("Python", "fail", detail, "use Python 3.11, 3.12 or 3.13")
    elif sys.version_info[:2] > NEWEST:
        yield Finding(
            "Python",
            "warn",
            f"{detail}: megatron-core has no wheels for it",
            "use Python 3.11, 3.12 or 3.13 wherever stages run",
        )
    else:
        yield Finding("Python", "ok", detail)


def check_toolkit(torch: Torch) -> Iterator[Finding]:
    """The project is installed, with what checking and submitting needs."""
    version = version_of(PROJECT)
    if version is None:
        yield Finding(
            PROJECT,
            "fail",
            "imported from a folder, not installed: its requirements are unknown",
            "pip install -e . in the checkout",
        )
        return
    bad = [p for p in requirements() if not p.in_range]
    if bad:
        yield _out_of_range(f"{PROJECT} {version}", bad, "fail")
    else:
        yield Finding(PROJECT, "ok", f"{version}, with what checking and submitting needs")


def _out_of_range(name: str, bad: list[Package], status: Status) -> Finding:
    wanted = " ".join(f"'{p.wanted}'" for p in bad)
    return Finding(
        name,
        status,
        "; ".join(f"{p}, where {p.wanted} is needed" for p in bad),
        f"pip install {wanted}",
    )


def check_torch(torch: Torch) -> Iterator[Finding]:
    """torch is there, can be imported, and is of a version that the stages support."""
    if not torch.installed:
        yield Finding(
            "torch",
            "info",
            "not installed: this machine can check, render, submit and report, and run no stage",
            f"to run stages here: {install('train')}",
        )
    elif torch.error:
        yield Finding(
            "torch",
            "fail",
            f"installed ({version_of('torch')}) and broken: {torch.error}",
            "reinstall torch; python -c 'import torch' shows the whole message",
        )
    else:
        yield from _torch_version(torch)


def _torch_version(torch: Torch) -> Iterator[Finding]:
    build = f"for CUDA {torch.cuda}, NCCL {torch.nccl}" if torch.cuda else "a CPU build"
    detail = f"{torch.version}, {build}"
    package = required("torch", "train")
    if not package.requirement.specifier.contains(Version(torch.version), prereleases=True):
        yield Finding("torch", "fail", detail, f"install {package.wanted}")
    elif not torch.gloo:
        yield Finding(
            "torch",
            "warn",
            f"{detail}, without gloo",
            "several ranks on a CPU need a build of torch with gloo",
        )
    else:
        yield Finding("torch", "ok", detail)


def check_megatron_core(torch: Torch) -> Iterator[Finding]:
    """megatron-core is of a version that fits the code, and the newest for this Python."""
    package = required("megatron-core", "train")
    if package.installed is None:
        status: Status = "warn" if torch.installed else "info"
        advice = install("train") if torch.installed else ""
        yield Finding("megatron-core", status, "not installed: no pretrain, export, import", advice)
    elif not package.in_range:
        yield _out_of_range("megatron-core", [package], "fail")
    elif sys.version_info >= (3, 12) and Version(package.installed) < Version("0.17"):
        yield Finding(
            "megatron-core",
            "info",
            f"{package.installed}, the last one for Python 3.11",
            f"this Python takes a newer one: pip install --upgrade '{package.wanted}'",
        )
    else:
        yield Finding("megatron-core", "ok", package.installed)


def check_training_stack(torch: Torch) -> Iterator[Finding]:
    """The other packages of the ``data`` and ``train`` extras."""
    apart = {"torch", "megatron-core"}
    whole = (*requirements("data"), *requirements("train"))
    packages = [p for p in whole if p.requirement.name not in apart]
    missing = [p.requirement.name for p in packages if p.installed is None]
    wrong = [p for p in packages if p.installed is not None and not p.in_range]
    if wrong:
        yield _out_of_range("training stack", wrong, "fail")
    if missing and torch.installed:
        yield Finding(
            "training stack", "warn", f"missing: {', '.join(missing)}", install("data,train")
        )
    elif missing and not wrong:
        yield Finding("training stack", "info", "not installed, as is right on a login node")
    elif not wrong:
        named = ("transformers", "trl", "peft", "datasets")
        shown = ", ".join(str(p) for p in packages if p.requirement.name in named)
        yield Finding("training stack", "ok", f"{len(packages)} packages in range: {shown}")


def check_extras(torch: Torch) -> Iterator[Finding]:
    """The optional extras."""
    for extra, purpose in OPTIONAL.items():
        packages = requirements(extra)
        if not packages:
            continue
        name = " and ".join(p.requirement.name for p in packages)
        wrong = [p for p in packages if p.installed is not None and not p.in_range]
        there = [p for p in packages if p.in_range]
        if wrong:
            yield _out_of_range(name, wrong, "warn")
        elif there:
            yield Finding(name, "ok", ", ".join(map(str, there)))
        else:
            yield Finding(name, "info", f"not installed: for {purpose}", install(extra))
