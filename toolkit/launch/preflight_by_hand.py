"""A preflight by hand: on this machine, in an allocation under srun, or as a job of a cluster."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.errors import ExitCode, ToolkitError
from toolkit.launch import slurm
from toolkit.launch.cluster import Cluster, load_cluster
from toolkit.launch.code import find_code
from toolkit.launch.local import free_port, tail
from toolkit.launch.remote import python_of
from toolkit.launch.render import Target, render_job
from toolkit.launch.spec import LaunchSpec
from toolkit.pipeline.state import unfit_nodes
from toolkit.preflight.config import Preflight
from toolkit.preflight.gpus import driver
from toolkit.preflight.record import SUMMARY
from toolkit.share import share

NAME = "preflight"
TIME_LIMIT = 20
"""Minutes of a job that does nothing else."""


@dataclass(frozen=True)
class Outcome:
    """What a preflight found."""

    summary: Mapping[str, Any]
    """As ``record.write_verdict`` writes it; without ``nodes`` where no rank could judge."""
    code: ExitCode


def here(root: Path, ranks: int | None, settings: Preflight) -> Outcome:
    """With ranks on this machine: one for each GPU, or two on the CPU, unless told otherwise.

    Args:
        root: a folder of the file system that is to be looked at; nothing stays there.
        ranks: how many.
        settings: floors.
    """
    gpus = len(driver()[0])
    count = ranks or gpus or 2
    own = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": free_port()}
    with _folder(root) as stage:
        command = _command(stage, settings, gpus and count)
        logs = [stage / f"rank-{rank}.log" for rank in range(count)]
        running = []
        for rank, log in enumerate(logs):
            place = {**own, "RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1"}
            environment = _alone() | {name: str(value) for name, value in place.items()}
            with log.open("wb") as stream:
                running.append(
                    subprocess.Popen(command, env=environment, stdout=stream, stderr=stream)
                )
        try:
            codes = [process.wait() for process in running]
        finally:
            for process in running:
                process.kill()
        return _outcome(stage / NAME / "by-hand", max(codes), logs[0])


def _alone() -> dict[str, str]:
    """This process's environment without Slurm's, and with one thread for each rank."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    return {"OMP_NUM_THREADS": "1", **kept}


def _command(stage: Path, settings: Preflight, gpus: int) -> list[str]:
    given = settings.model_dump(exclude_defaults=True) | ({"gpus": gpus} if gpus else {})
    return [sys.executable, "-m", "toolkit.preflight", str(stage), json.dumps(given)]


@contextmanager
def _folder(root: Path) -> Iterator[Path]:
    """A folder that is gone afterwards."""
    if not root.is_dir():
        raise ToolkitError("no such folder", where=str(root), hint="name one with --run-root")
    folder = Path(tempfile.mkdtemp(prefix=f".{NAME}-", dir=root))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _outcome(folder: Path, code: int, log: Path) -> Outcome:
    path = folder / SUMMARY
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        wrong = ExitCode.USER_ERROR if found["common"] else ExitCode.NODE_UNFIT
        return Outcome(found, ExitCode.OK if found["fit"] else wrong)
    named: dict[str, list[str]] = {}
    for entry in unfit_nodes(folder.parent.parent):
        named.setdefault(entry["node"], []).append(entry["reason"])
    if named:
        return Outcome({"unfit": named, "common": []}, ExitCode.NODE_UNFIT)
    said = "\n  ".join(tail(log))
    raise ToolkitError(f"the preflight ended with exit code {code}:\n  {said}")


def under_srun(root: Path, settings: Preflight) -> Outcome | None:
    """As one rank of an srun's; rank 0 has the outcome, the others None."""
    environment = os.environ
    rank = int(environment["SLURM_PROCID"])
    step = f"{environment['SLURM_JOB_ID']}.{environment['SLURM_STEP_ID']}"
    stage = root.resolve() / f".{NAME}-{step}"
    nodes = environment.get("SLURM_STEP_NODELIST") or environment["SLURM_JOB_NODELIST"]
    place = {
        "RANK": rank,
        "WORLD_SIZE": environment["SLURM_NTASKS"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "MASTER_ADDR": slurm.call(["scontrol", "show", "hostnames", nodes]).split()[0],
        "MASTER_PORT": 20_000 + int(environment["SLURM_JOB_ID"]) % 12_768,
    }
    gpus = len([gpu for gpu in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu])
    stage.mkdir(exist_ok=True)
    log = stage / f"log-{rank}"
    with log.open("wb") as stream:
        done = subprocess.run(
            _command(stage, settings, gpus),
            env={**environment, **{name: str(value) for name, value in place.items()}},
            stdout=stream,
            stderr=stream,
            check=False,
        )
    if rank:
        return None
    restart = environment.get("SLURM_RESTART_COUNT", "0")
    try:
        folder = stage / NAME / f"{environment['SLURM_JOB_ID']}-{restart}"
        return _outcome(folder, done.returncode, log)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def on_cluster(
    name: str,
    nodes: int,
    root: Path | None,
    floors: Mapping[str, float],
    sent: Callable[[str, Path], None],
) -> Outcome:
    """As a job of a cluster, with its profile's container, environment and floors; waits for it.

    Args:
        name: of the profile.
        nodes: how many.
        root: in place of the profile's ``run_root``; the job's folder stays there.
        floors: settings of its ``preflight`` that win over the profile's.
        sent: told the job's id and its log once it waits.
    """
    cluster, _ = load_cluster(name)
    settings = cluster.preflight.model_copy(update={"enabled": True, **floors})
    cluster = cluster.model_copy(update={"preflight": settings})
    run = (root or cluster.root()).resolve() / f"{NAME}-{time.strftime('%Y%m%d-%H%M%S')}"
    spec = LaunchSpec(
        stage=NAME,
        folder=run / NAME,
        argv=(python_of(cluster), "-c", ""),
        nodes=nodes,
        ntasks_per_node=max(1, cluster.node.gpus),
        rendezvous=True,
        gpus_wanted=True,
        time_limit=TIME_LIMIT,
    )
    (spec.folder / "logs").mkdir(parents=True)
    script = run / f"{NAME}.sh"
    script.write_text(_script(spec, cluster, name, run), encoding="utf-8")
    number = slurm.submit(["sbatch", "--parsable", str(script)])
    log = spec.folder / "logs" / f"slurm-{number}.log"
    try:
        sent(number, log)
        while any(job.active for job in slurm.jobs([number])[number]):
            time.sleep(1)
    except BaseException:
        with suppress(ToolkitError):
            slurm.cancel([number])
        raise
    return _outcome(spec.folder / NAME / f"{number}-0", 1, log)


def _script(spec: LaunchSpec, cluster: Cluster, name: str, run: Path) -> str:
    """The job's script: that of a stage whose work is nothing."""
    code = find_code(share("toolkit").parent)
    packed = code.pack(run) if code else None
    own = {"launch": "srun", "requeue": False, "chain": None}
    alone = cluster.model_copy(update=own)
    return render_job(spec, Target(alone, name, run.name, packed)).text
