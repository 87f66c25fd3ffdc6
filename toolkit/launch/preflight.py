"""The step of a job that looks at its nodes before the work (``slurm/preflight.sh.j2``)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from toolkit.launch.cluster import Cluster
from toolkit.launch.command import step_command, task_script
from toolkit.launch.spec import LaunchSpec

MARGIN = 720
"""Seconds beyond ``timeout_seconds`` until the step is killed: even where every all-reduce hangs,
its ranks have ended themselves before."""


@dataclass(frozen=True)
class PreflightStep:
    """What the template fills in."""

    command: str
    """In bash; needs ``$look``, what each task runs first."""
    look: str
    seconds: int


def preflight_step(
    spec: LaunchSpec, cluster: Cluster, environment: Mapping[str, str], code: Path | None
) -> PreflightStep | None:
    """The step of one job; None where there is nothing to look at, or the profile wants none.

    Its ranks are srun's, as many as the job's, also where torchrun starts the work: so a node that
    can't start them is known by their silence. A rank that fails must not end the others.
    """
    settings = cluster.preflight
    if not spec.rendezvous or not settings.wanted(spec.world_size, spec.gpus_per_node):
        return None
    given = settings.model_dump(exclude_defaults=True, exclude={"enabled"})
    given |= {"gpus": spec.gpus_per_node} if spec.gpus_per_node else {}
    argv = (spec.argv[0], "-m", "toolkit.preflight", str(spec.folder), json.dumps(given))
    by_srun = cluster.model_copy(update={"launch": "srun"})
    bind = [f"--cpu-bind={cluster.cpu_bind}"] if cluster.cpu_bind else []
    shape = [f"--ntasks={spec.world_size}", f"--ntasks-per-node={spec.ntasks_per_node}"]
    shape += [f"--cpus-per-task={spec.cpus_per_task}"]
    options = ["--kill-on-bad-exit=0", "--wait=0", *bind]
    options += shape if cluster.launch == "torchrun" else []
    command = step_command(
        replace(spec, argv=argv), by_srun, environment, code, "preflight", options, "look"
    )
    return PreflightStep(command, task_script(spec, by_srun), settings.timeout_seconds + MARGIN)
