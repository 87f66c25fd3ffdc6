"""From launch specs to the text that Slurm gets: pure functions of a spec and a profile."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from toolkit import __version__
from toolkit.context import WATCHDOG
from toolkit.errors import ExitCode
from toolkit.launch import slurm
from toolkit.launch.cluster import Cluster
from toolkit.launch.command import step_command, task_script
from toolkit.launch.preflight import preflight_step
from toolkit.launch.rendered import RenderedJob
from toolkit.launch.spec import LaunchSpec
from toolkit.quantities import megabytes, minutes, time_text
from toolkit.share import share
from toolkit.worker import LOCK_SECONDS, QUIET_STOP

WAIT_FOR_LOCK = 200
"""Seconds that a job waits for the lock of its stage: see ``worker.LOCK_SECONDS``."""
KEPT = ("HOME", "USER", "LOGNAME", "SHELL", "LANG", "PATH")
"""What a job takes from the environment of whoever submits it, beside secrets."""


@dataclass(frozen=True)
class Target:
    """What scripts are rendered for."""

    cluster: Cluster
    name: str
    """Of the profile."""
    run: str
    """The run's name."""
    code: Path | None = None
    """The folder of the code that the jobs run; None: what is installed on the nodes."""


def render_job(spec: LaunchSpec, target: Target) -> RenderedJob:
    """One job's script."""
    text = render_text("job.sh.j2", spec, target)
    before = replace(spec, link=spec.link - 1).name if spec.link > 1 else None
    return RenderedJob(
        spec.name, spec.stage, text, spec.dependencies, spec.world_size, before=before
    )


def render_text(template: str, spec: LaunchSpec, target: Target) -> str:
    """A template of ``slurm/``, filled in for one job."""
    cluster = target.cluster
    spec = filled_in(spec, cluster)
    environment = job_environment(spec, target)
    return (
        _templates()
        .get_template(template)
        .render(
            spec=spec,
            cluster=cluster,
            cluster_name=target.name,
            run=target.run,
            version=__version__,
            options=[_directive(option) for option in job_options(spec, target)],
            environment=environment,
            task=task_script(spec, cluster),
            command=step_command(spec, cluster, environment, target.code),
            preflight=preflight_step(spec, cluster, environment, target.code),
            unfit=int(ExitCode.NODE_UNFIT),
            mistake=int(ExitCode.USER_ERROR),
            saved=int(ExitCode.SAVED_AND_STOPPED),
            interrupted=int(ExitCode.INTERRUPTED),
        )
    )


def render_submit(
    jobs: Sequence[RenderedJob], run: Path, known: Mapping[str, str] | None = None
) -> str:
    """A script of the commands that submit all jobs; ``known`` are ids of jobs sent before.

    It sends nothing where ``run``, the run's folder, has not been laid out.
    """
    ids = dict(known or {}) | {job.name: f"${{job[{job.name}]}}" for job in jobs}
    sent = [(job.name, job.command(ids, job.file)[2:]) for job in jobs]
    template = _templates().get_template("submit.sh.j2")
    return template.render(jobs=sent, run=run.name, folder=run, defaults=slurm.DEFAULTS)


def filled_in(spec: LaunchSpec, cluster: Cluster) -> LaunchSpec:
    """A job with the cluster's values for what its stage doesn't ask.

    A rank gets its share of a node's cores: by GPUs where it has one, else by ranks on the node.
    Memory follows the cores.
    """
    node = cluster.node
    gpus = min(spec.ntasks_per_node, node.gpus) if spec.gpus_wanted else spec.gpus_per_node
    share_of = max(node.gpus // gpus, 1) * spec.ntasks_per_node if gpus else spec.ntasks_per_node
    cpus = spec.cpus_per_task or max(1, node.cpus // share_of)
    exclusive = cluster.exclusive and spec.rendezvous if spec.exclusive is None else spec.exclusive
    tasks = 1 if spec.array else spec.ntasks_per_node
    memory = spec.memory
    if memory is None and node.memory and not exclusive:
        memory = max(1, megabytes(node.memory) * min(node.cpus, cpus * tasks) // node.cpus)
    return replace(
        spec,
        gpus_per_node=gpus,
        gpus_wanted=False,
        cpus_per_task=cpus,
        exclusive=exclusive,
        memory=memory,
        time_limit=spec.time_limit or minutes(cluster.time_limit),
        max_tasks=spec.max_tasks or cluster.max_tasks,
    )


def job_environment(spec: LaunchSpec, target: Target) -> dict[str, str]:
    """What a job's script exports, by name; no secret is in it."""
    cores = spec.cpus_per_task or 1
    found = {
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(cores),
        "RAYON_NUM_THREADS": str(cores),
        "TOKENIZERS_PARALLELISM": "true" if cores > 1 else "false",
        LOCK_SECONDS: str(WAIT_FOR_LOCK),
        **spec.environment,
        **target.cluster.variables(),
    }
    if target.code is not None:
        found["PYTHONPATH"] = str(target.code)
        found["PYTHONSAFEPATH"] = "1"  # and not a checkout that the job was submitted in
    if spec.rendezvous:
        found[QUIET_STOP] = "1"
        watchdog = target.cluster.watchdog_seconds
        found |= {WATCHDOG: str(watchdog)} if watchdog is not None else {}
    if spec.rendezvous and spec.gpus_per_node:
        found = _for_nccl(spec.folder / "logs") | found
    return found


def _for_nccl(logs: Path) -> dict[str, str]:
    """PyTorch's flight recorder: where a collective hangs, what each rank was at is in the logs.

    Both names of each setting: newer versions of PyTorch go by TORCH_FR_*.
    """
    dumps = str(logs / "flight-")
    return {
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "TORCH_NCCL_TRACE_BUFFER_SIZE": "2000",
        "TORCH_FR_BUFFER_SIZE": "2000",
        "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": dumps,
        "TORCH_FR_DUMP_TEMP_FILE": dumps,
        "TORCH_NCCL_AVOID_RECORD_STREAMS": "1",
    }


def job_options(spec: LaunchSpec, target: Target) -> list[str]:
    """What stands behind ``#SBATCH``, unquoted; the cluster's values are filled in in ``spec``."""
    cluster = target.cluster
    queue = {
        name: spec.queue.get(name) or getattr(cluster, name)
        for name in ("partition", "account", "qos", "constraint", "reservation")
    }
    logs = str(spec.folder / "logs").replace("%", "%%")
    found = [f"--job-name={target.run}.{spec.name}"]
    found += [f"--{name}={value}" for name, value in queue.items() if value]
    found += [*_shape(spec, cluster), *_memory(spec)]
    found += [f"--exclude={','.join(cluster.exclude)}"] if cluster.exclude else []
    found += [f"--segment={cluster.segment}"] if cluster.segment and spec.nodes > 1 else []
    found += [
        f"--time={time_text(spec.time_limit or minutes(cluster.time_limit))}",
        f"--signal=USR1@{cluster.signal_seconds}",
        "--requeue" if cluster.requeue and spec.links == 1 else "--no-requeue",
        f"--output={logs}/slurm-{'%A_%a' if spec.array else '%j'}.log",
        "--open-mode=append",
        f"--export={','.join([*KEPT, *cluster.secrets])}",
    ]
    return found + cluster.options


def _shape(spec: LaunchSpec, cluster: Cluster) -> list[str]:
    """Nodes, tasks, cores and GPUs."""
    torchrun = spec.rendezvous and cluster.launch == "torchrun"
    tasks = 1 if spec.array or torchrun else spec.ntasks_per_node
    cpus = (spec.cpus_per_task or 1) * (spec.ntasks_per_node if torchrun else 1)
    found = [
        f"--nodes={1 if spec.array else spec.nodes}",
        f"--ntasks-per-node={tasks}",
        f"--cpus-per-task={cpus}",
    ]
    if spec.gpus_per_node:
        kind = f"{cluster.node.gpu_type}:" if cluster.node.gpu_type else ""
        found.append(f"--gpus-per-node={kind}{spec.gpus_per_node}")
    if spec.array:
        limit = f"%{spec.max_tasks}" if spec.max_tasks else ""
        found.append(f"--array=0-{spec.world_size - 1}{limit}")
    return found


def _memory(spec: LaunchSpec) -> list[str]:
    if spec.exclusive:
        return ["--exclusive", "--mem=0"]
    return [f"--mem={spec.memory}M"] if spec.memory else []


def _directive(option: str) -> str:
    """An option as a ``#SBATCH`` line takes it: in quotes where it holds more than a word."""
    name, equals, value = option.partition("=")
    if not equals or re.fullmatch(r"[\w.,:/%@+&|*()\[\]=-]+", value, re.ASCII):
        return option
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'{name}="{quoted}"'


def _quote(value: object) -> str:
    """A value as one word of bash."""
    text = str(value)
    if re.fullmatch(r"[\w./:,-]+", text, re.ASCII):
        return text
    return "'" + text.replace("'", "'\"'\"'") + "'"


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(share("slurm")),
        undefined=StrictUndefined,
        autoescape=False,  # bash, not HTML: the filters below quote
        comment_start_string="<#",  # bash has uses of its own for {#
        comment_end_string="#>",
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["quote"] = _quote
    environment.filters["comment"] = lambda value: " ".join(str(value).split())
    return environment
