"""The code that jobs run: a checkout is copied into the run's folder, with all that is uncommitted.

So that a job that starts days later, or goes on after its time limit, runs what was submitted. What
is installed from a wheel is not copied: the nodes have it, or their image has.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.artifacts import write_json, write_text
from toolkit.errors import ToolkitError

PACKED = ("toolkit", "configs", "slurm", "k8s")
RECORD = "code.json"
SUBMODULE = "160000"
"""The mode of a submodule in git's index."""
DIFF = "uncommitted.diff"
MOST = 100 * 2**20
"""Bytes of code that are taken for code: more than that is data that git doesn't ignore."""


@dataclass(frozen=True)
class Code:
    """A checkout as it is now."""

    root: Path
    files: tuple[str, ...]
    """Tracked and untracked, but not ignored; relative to ``root``."""
    digest: str
    """SHA-256 (16 digits) of all files' names and bytes."""
    commit: str
    diff: str
    """Of tracked files against the commit; empty where nothing is changed."""
    untracked: tuple[str, ...]
    """Those of ``files`` that git doesn't know yet."""

    def folder(self, run: Path) -> Path:
        """Where it lies in a run's folder."""
        return run / "code" / self.digest

    def record(self) -> dict[str, Any]:
        """What is noted with a submission."""
        return {
            "commit": self.commit,
            "changed": bool(self.diff),
            "untracked": list(self.untracked),
            "digest": self.digest,
        }

    def pack(self, run: Path) -> Path:
        """Copy it into a run's folder, once; it appears by one rename."""
        target = self.folder(run)
        if target.is_dir():
            return target
        for left in target.parent.glob(".*"):  # by one that was killed; the run is locked
            shutil.rmtree(left)
        building = target.with_name(f".{target.name}.{os.getpid()}")
        for name in self.files:
            (building / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(self.root / name, building / name)
        write_json(building / RECORD, self.record())
        write_text(building / DIFF, self.diff)
        building.rename(target)
        return target


def find_code(root: Path) -> Code | None:
    """The checkout at ``root``, or None where the toolkit was installed from a wheel.

    Raises:
        ToolkitError: it is a checkout, and git can't say what is in it, or it holds data.
    """
    if not (root / ".git").exists():
        return None
    known, untracked = _listed(root)
    names = sorted(name for name in {*known, *untracked} if (root / name).is_file())
    _check_size(root, names)
    digest = hashlib.sha256()
    for name in names:
        data = (root / name).read_bytes()
        digest.update(f"{name}\0{len(data)}\0".encode() + data)
    return Code(
        root=root,
        files=tuple(names),
        digest=digest.hexdigest()[:16],
        commit=_git(root, "rev-parse", "HEAD").strip(),
        diff=_git(root, "diff", "--submodule=diff", "HEAD", "--", *PACKED),
        untracked=tuple(sorted(untracked)),
    )


def _listed(root: Path, only: Sequence[str] = PACKED) -> tuple[list[str], list[str]]:
    """What git tracks, and what it neither tracks nor ignores; submodules' files, too."""
    known: list[str] = []
    others = _git(root, "ls-files", "-z", "-o", "--exclude-standard", "--", *only)
    untracked = [name for name in others.split("\0") if name]
    for entry in filter(None, _git(root, "ls-files", "-z", "--stage", "--", *only).split("\0")):
        name = entry.partition("\t")[2]
        if not entry.startswith(SUBMODULE):
            known.append(name)
        elif (root / name / ".git").exists():  # else it was never checked out
            inside, more = _listed(root / name, ())
            known += [f"{name}/{inner}" for inner in inside]
            untracked += [f"{name}/{inner}" for inner in more]
    return known, untracked


def _check_size(root: Path, names: Sequence[str]) -> None:
    """Refuse to copy data into every run.

    Raises:
        ToolkitError: it names the largest files.
    """
    sizes = {name: (root / name).stat().st_size for name in names}
    total = sum(sizes.values())
    if total <= MOST:
        return
    largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
    shown = ", ".join(f"{name} ({sizes[name] / 2**20:,.0f} MiB)" for name in largest)
    raise ToolkitError(
        f"{total / 2**20:,.0f} MiB of code, which is copied into the run; the largest: {shown}",
        where=str(root),
        hint="move data out of the checkout, or name it in .gitignore",
    )


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        hint = "install git, or install the toolkit from a wheel"
        raise ToolkitError("there is no git to say what is in the checkout", hint=hint) from error
    if done.returncode:
        raise ToolkitError(f"git can't read the checkout: {done.stderr.strip()}", where=str(root))
    return done.stdout
