"""The one command of a job that starts its ranks: srun or torchrun, in a container or not."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from toolkit.launch.cluster import Cluster
from toolkit.launch.spec import LaunchSpec

PER_RANK = """\
export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID
export LOCAL_WORLD_SIZE=$((SLURM_NTASKS / SLURM_NNODES))
"""
NOTE_START = """\
start="on $(hostname), start ${SLURM_RESTART_COUNT:-0}"
echo "--- $(date -u +%FT%TZ) rank $RANK of $WORLD_SIZE $start"
"""
ONE_RANK = f"""\
{NOTE_START}\
trap "" USR1  # until the rank listens itself: by default it would die of it
exec "$@\""""
TORCHRUN = """\
echo "--- $(date -u +%FT%TZ) node $SLURM_PROCID on $(hostname), start ${SLURM_RESTART_COUNT:-0}"
workers=$1 told=0; shift
tell() {  # the workers, and not torchrun, which would end them
    told=1
    for process in /proc/[0-9]*; do
        { mapfile -d "" -t words < "$process/cmdline"; } 2> /dev/null || continue
        [[ ! ${words[*]} =~ $workers ]] || kill -USR1 "${process#/proc/}" || true
    done
}
trap tell USR1
(trap "" USR1; exec "$@") & torchrun=$!
code=0; wait "$torchrun" || code=$?
while (( told )); do told=0; code=0; wait "$torchrun" || code=$?; done
exit "$code\""""
BY_JOB = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "SLURM_JOB_ID",
    "SLURM_RESTART_COUNT",
    "SLURMD_NODENAME",
)
"""What a job's script, or its ranks, export beside the environment of the profile."""


def step_command(
    spec: LaunchSpec,
    cluster: Cluster,
    environment: Mapping[str, str],
    code: Path | None,
    log: str | None = None,
    options: Sequence[str] | None = None,
    task: str = "task",
) -> str:
    """The command in bash, over several lines; its exit code is that of its worst rank.

    Args:
        spec: the job, with the cluster's values filled in; its ``argv`` is what each rank runs:
            ``replace(spec, argv=...)`` runs something else in the same ranks and containers.
        cluster: the profile.
        environment: what the script exports, for containers that must be told the names.
        code: the folder of the code that the jobs run, which containers must see.
        log: what the logs' names begin with, in place of ``rank``, or ``node`` under torchrun.
        options: srun's, in place of ``srun_options``.
        task: the script's variable that holds what ``task_script`` gives.
    """
    log = log or ("node" if _by_torchrun(spec, cluster) else "rank")
    lines = [
        _srun(spec, log, srun_options(cluster) if options is None else options),
        *pyxis_options(spec, cluster, environment, code),
        _start(spec, cluster, task),
        *_wrapped(spec, cluster, environment, code),
        _worker(spec, cluster),
    ]
    return " \\\n    ".join(lines)


def rank_command(
    spec: LaunchSpec, cluster: Cluster, environment: Mapping[str, str], code: Path | None
) -> list[str]:
    """The words that start one rank where no srun does: the worker, in its container.

    Pyxis's containers are srun's: see ``pyxis_options``. The arguments are those of
    ``step_command``.
    """
    return [*shlex.split(" ".join(_wrapped(spec, cluster, environment, code))), *spec.argv]


def _names(cluster: Cluster, environment: Mapping[str, str]) -> list[str]:
    """The variables that a container must be told of."""
    names = [*environment, *BY_JOB, *cluster.secrets, *cluster.secret_files]
    return list(dict.fromkeys(names))


def _mounts(spec: LaunchSpec, cluster: Cluster, code: Path | None) -> list[str]:
    run = spec.folder.parent
    folders = [run] if code is None or code.is_relative_to(run) else [run, code]
    return [*(f"{folder}:{folder}" for folder in folders), *cluster.container.mounts]


def _by_torchrun(spec: LaunchSpec, cluster: Cluster) -> bool:
    return spec.rendezvous and cluster.launch == "torchrun"


def _srun(spec: LaunchSpec, name: str, options: Sequence[str]) -> str:
    logs = str(spec.folder / "logs").replace("%", "%%")
    number = '"$SLURM_ARRAY_TASK_ID"' if spec.array else "%t"
    log = shlex.quote(f"{logs}/{name}-") + f"{number}.log"
    return f"srun {' '.join(options)} --output={log} --open-mode=append"


def srun_options(cluster: Cluster) -> list[str]:
    """How srun treats its ranks: when one fails, the others end; each keeps to its cores.

    One that ends well ends no other: rank 0 flushes and hashes the artifact when the others are
    done, which takes minutes for a large model, and slurm.conf may have a WaitTime.
    """
    bind = [f"--cpu-bind={cluster.cpu_bind}"] if cluster.cpu_bind else []
    return ["--kill-on-bad-exit=1", "--wait=0", *bind]


def pyxis_options(
    spec: LaunchSpec, cluster: Cluster, environment: Mapping[str, str], code: Path | None
) -> list[str]:
    """srun's options, quoted for bash: Pyxis starts the container, with the values it is named.

    The arguments are those of ``step_command``.
    """
    if cluster.container.runtime != "pyxis":
        return []
    options = {
        "--container-image": str(cluster.container.image),
        "--container-mounts": ",".join(_mounts(spec, cluster, code)),
        "--container-env": ",".join(_names(cluster, environment)),
    }
    shown = [f"{name}={shlex.quote(value)}" for name, value in options.items()]
    return [*shown, "--no-container-mount-home"]


def task_script(spec: LaunchSpec, cluster: Cluster) -> str:
    """What bash runs in each task first: it learns its rank, and notes its start in the log."""
    if _by_torchrun(spec, cluster):
        return TORCHRUN
    return ONE_RANK if spec.array else PER_RANK + ONE_RANK


def _start(spec: LaunchSpec, cluster: Cluster, task: str) -> str:
    if not _by_torchrun(spec, cluster):
        return f'bash -c "${task}" rank'
    words = " ".join(spec.argv[1:])
    workers = "^[^ ]+ (-u )?" + re.sub(r"([][\\.^$*+?(){}|])", r"\\\1", words) + "$"
    return f'bash -c "${task}" node {shlex.quote(workers)}'


def _wrapped(
    spec: LaunchSpec, cluster: Cluster, environment: Mapping[str, str], code: Path | None
) -> list[str]:
    """A container that a command of its own starts."""
    container, gpus = cluster.container, spec.gpus_per_node > 0
    mounts = _mounts(spec, cluster, code)
    if container.runtime == "apptainer":
        binds = ["--bind=" + shlex.quote(mount) for mount in mounts]
        nv = ["--nv"] if gpus else []
        return [" ".join(["apptainer exec", *nv, *binds, shlex.quote(str(container.image))])]
    if container.runtime == "podman":
        options = ["--rm", "--network=host", "--ipc=host", "--userns=keep-id"]
        # All GPUs are there, and which of them are the job's is in Slurm's variable.
        options += ["--device=nvidia.com/gpu=all", "--env=CUDA_VISIBLE_DEVICES"] if gpus else []
        # The fabric's adapters: without them NCCL would go over TCP, and not say so.
        fabric = spec.nodes > 1 and cluster.network != "none"
        options += ["--device=/dev/infiniband", "--ulimit=host"] if fabric else []
        options += ["--volume=" + shlex.quote(mount) for mount in mounts]
        options += [f"--env={name}" for name in _names(cluster, environment)]
        return [" ".join(["podman run", *options, shlex.quote(str(container.image))])]
    return []


def _worker(spec: LaunchSpec, cluster: Cluster) -> str:
    if not _by_torchrun(spec, cluster):
        return shlex.join(spec.argv)
    python, *module = spec.argv
    return " ".join(
        [
            f"{shlex.quote(python)} -m torch.distributed.run --nnodes={spec.nodes}",
            f"--nproc-per-node={spec.ntasks_per_node} --max-restarts=0 --rdzv-backend=c10d",
            '--rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$MASTER_ADDR:$MASTER_PORT"',
            shlex.join(module),
        ]
    )
