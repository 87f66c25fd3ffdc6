"""A rendered job: the text that Slurm gets, what it waits for, and the command that sends it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from toolkit.launch import slurm


@dataclass(frozen=True)
class RenderedJob:
    """The exact text of one job, and what it waits for."""

    name: str
    stage: str
    text: str
    dependencies: tuple[str, ...]
    ranks: int = 1
    """Tasks of an array, or processes that run at one time."""
    sender: Literal["sbatch", "submitit"] = "sbatch"
    """What alone can send it."""
    before: str | None = None
    """Of a chain: the link that this one goes on from, when that has ended in any way."""

    @property
    def behind(self) -> list[str]:
        """The names of all jobs that it is to start after."""
        return [*self.dependencies, *([self.before] if self.before else [])]

    @property
    def file(self) -> str:
        """The script's file name."""
        return f"{self.name}.sh"

    def command(self, ids: Mapping[str, str], script: str) -> list[str]:
        """The command that submits it, once what it waits for has ids.

        Args:
            ids: by name, in the order in which they were sent; of a chain those of all links.
            script: the path of its script.
        """
        after = self._after(ids)
        waits = ["--kill-on-invalid-dep=yes", f"--dependency={after}"] if after else []
        return ["sbatch", "--parsable", *waits, script]

    def send(self, ids: dict[str, str], script: str) -> str:
        """Send it; returns its id. The arguments are those of ``command``.

        Raises:
            ToolkitError: Slurm refuses it.
        """
        return slurm.submit(self.command(ids, script))

    def _after(self, ids: Mapping[str, str]) -> str:
        """Slurm's expression for what it waits for.

        Slurm can wait for any of several jobs (``?``), or for all (``,``), but not for all of
        which one is any of several. So with more to wait for than one chain, the job waits for the
        chain's end, and looks by itself whether what it takes is there.
        """
        needs = [links_of(name, ids) for name in self.dependencies]
        if len(needs) == 1 and self.before is None:
            return "?".join(f"afterok:{number}" for number in needs[0])
        done = [links[0] for links in needs if len(links) == 1]
        ended = [links[-1] for links in needs if len(links) > 1]
        ended += [ids[self.before]] if self.before else []
        both = {"afterok": done, "afterany": ended}
        return ",".join(f"{how}:{':'.join(which)}" for how, which in both.items() if which)


def links_of(name: str, ids: Mapping[str, str]) -> list[str]:
    """The ids of a job, or of all links of a chain, by the name that others wait for."""
    found = [number for job, number in ids.items() if whole_name(job) == name]
    assert found, f"no id of {name}, which is waited for"
    return found


def whole_name(job: str) -> str:
    """The name that others wait for: ``base`` of ``base.2``, the second link of a chain."""
    name, _, last = job.rpartition(".")
    return name if last.isdigit() else job
