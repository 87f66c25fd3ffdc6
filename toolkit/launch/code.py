"""The code that jobs run: a checkout is copied into the run's folder, with all that is uncommitted.

So that a job that starts days later, or goes on after its time limit, runs what was submitted. What
is installed from a wheel is not copied: the nodes have it, or their image has.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.artifacts import write_json, write_text
from toolkit.errors import ToolkitError

PACKED = ("toolkit", "configs", "slurm", "k8s")
RECORD = "code.json"
DIFF = "uncommitted.diff"


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
        ToolkitError: it is a checkout, and git can't say what is in it.
    """
    if not (root / ".git").exists():
        return None
    known = _git(root, "ls-files", "-z", "--", *PACKED)
    untracked = _git(root, "ls-files", "-z", "-o", "--exclude-standard", "--", *PACKED)
    names = sorted({n for n in (known + untracked).split("\0") if n and (root / n).is_file()})
    digest = hashlib.sha256()
    for name in names:
        data = (root / name).read_bytes()
        digest.update(f"{name}\0{len(data)}\0".encode() + data)
    return Code(
        root=root,
        files=tuple(names),
        digest=digest.hexdigest()[:16],
        commit=_git(root, "rev-parse", "HEAD").strip(),
        diff=_git(root, "diff", "HEAD", "--", *PACKED),
        untracked=tuple(sorted(n for n in untracked.split("\0") if n)),
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
