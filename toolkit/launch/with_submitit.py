"""Jobs that submitit sends: its own script, with the options and the lines of ours.

submitit (https://github.com/facebookincubator/submitit) pickles what each task calls
(``submitit_rank.Rank``), and brings its own way of going on after a time limit. All else is as
sbatch has it: the same options, environment, folders, logs and records, so that ``toolkit status``,
``logs``, ``cancel`` and ``resubmit`` see no difference.
"""

from __future__ import annotations

import contextlib
import io
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.errors import ToolkitError
from toolkit.launch.cluster import Cluster
from toolkit.launch.command import pyxis_options, rank_command, srun_options
from toolkit.launch.render import Target, filled_in, job_environment, job_options, render_text
from toolkit.launch.rendered import RenderedJob
from toolkit.launch.spec import LaunchSpec
from toolkit.launch.submitit_rank import SIGNAL, Rank
from toolkit.quantities import minutes

FOLDER = "submitit"
"""In ``RUN/slurm``: submitit's scripts, pickles, results, and what its tasks say; by job id."""


@dataclass(frozen=True, kw_only=True)
class SubmititJob(RenderedJob):
    """A job as submitit takes it; ``text`` is its script but for the ids of what it waits for."""

    folder: Path
    python: str
    """The nodes' Python that has submitit."""
    rank: Rank
    parameters: dict[str, Any] = field(repr=False)
    """Of submitit's ``SlurmExecutor``."""
    max_restarts: int

    def send(self, ids: Mapping[str, str], script: str) -> str:
        """Send it through ``submitit.AutoExecutor``; returns its id.

        Args:
            ids: of the jobs that it may wait for, by name.
            script: not sent, but a copy to read: submitit writes its own.

        Raises:
            ToolkitError: Slurm refuses it.
        """
        submitit = _submitit()
        executor = submitit.AutoExecutor(
            self.folder,
            cluster="slurm",
            slurm_max_num_timeout=self.max_restarts,
            slurm_python=self.python,
        )
        waits = [word for word in self.command(ids, script) if word.startswith("--")]
        more = _by_name(word for word in waits if word != "--parsable")
        parameters = {**self.parameters}
        parameters["additional_parameters"] = {**parameters["additional_parameters"], **more}
        executor.update_parameters(**{f"slurm_{name}": v for name, v in parameters.items()})
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # sbatch's words are in the error, too
                if self.rank.array:
                    sent = executor.map_array(self.rank, range(self.ranks))[0]
                else:
                    sent = executor.submit(self.rank)
        except (
            submitit.core.utils.FailedJobError,
            submitit.core.utils.FailedSubmissionError,
        ) as error:
            text = str(error).replace("sbatch: error: ", "").replace("\n", "; ")
            raise ToolkitError(f"sbatch refused: {text}") from error
        return str(sent.job_id).partition("_")[0]


def render_job(spec: LaunchSpec, target: Target) -> SubmititJob:
    """One job and its script, by submitit's own function; nothing is sent.

    Raises:
        ToolkitError: there is no submitit here, or it can't have the run's folder.
    """
    cluster = target.cluster
    spec = filled_in(spec, cluster)
    folder = spec.folder.parent / "slurm" / FOLDER
    if "%" in str(folder):
        hint = "name the run's folder without '%', or use submit_with: sbatch"
        raise ToolkitError("submitit takes '%' for its own", where=str(folder), hint=hint)
    parameters = _parameters(spec, target)
    python = _python(spec, cluster)
    return SubmititJob(
        spec.name,
        spec.stage,
        _script(folder, python, parameters, spec.world_size if spec.array else None),
        spec.dependencies,
        spec.world_size,
        sender="submitit",
        folder=folder,
        python=python,
        rank=_rank(spec, target),
        parameters=parameters,
        max_restarts=cluster.max_restarts,
    )


def _parameters(spec: LaunchSpec, target: Target) -> dict[str, Any]:
    """What ``SlurmExecutor`` is told: sbatch's options win over what it would say by itself."""
    cluster = target.cluster
    options = _by_name(job_options(spec, target))
    own = {"array", "open_mode"}  # submitit's: from the number of calls, and always append
    signal = {"signal": f"{SIGNAL.name.removeprefix('SIG')}@{cluster.signal_seconds}"}
    container = pyxis_options(spec, cluster, job_environment(spec, target), target.code)
    return {
        "nodes": int(options["nodes"]),
        "ntasks_per_node": int(options["ntasks_per_node"]),
        "time": spec.time_limit or minutes(cluster.time_limit),
        "array_parallelism": spec.max_tasks or spec.world_size,
        "stderr_to_stdout": True,
        "setup": render_text("submitit.sh.j2", spec, target).splitlines(),
        "teardown": render_text("submitit_after.sh.j2", spec, target).splitlines(),
        "srun_args": [
            *srun_options(cluster),
            "--open-mode=append",
            *(shlex.split(option)[0] for option in container),
        ],
        "additional_parameters": {k: v for k, v in options.items() if k not in own} | signal,
    }


def _by_name(options: Iterable[str]) -> dict[str, Any]:
    """sbatch's options as submitit has them: ``--no-requeue`` is ``{"no_requeue": True}``."""
    found = {}
    for option in options:
        name, equals, value = option.removeprefix("--").partition("=")
        found[name.replace("-", "_")] = value if equals else True
    return found


def _rank(spec: LaunchSpec, target: Target) -> Rank:
    cluster = target.cluster
    return Rank(
        folder=str(spec.folder),
        command=rank_command(spec, cluster, job_environment(spec, target), target.code),
        rendezvous=spec.rendezvous,
        array=spec.array,
        requeue=cluster.requeue,
        max_restarts=cluster.max_restarts,
        time_limit=spec.time_limit or minutes(cluster.time_limit),
        name=spec.name,
    )


def _python(spec: LaunchSpec, cluster: Cluster) -> str:
    """The Python that runs submitit: the worker's, or the node's where the worker is wrapped."""
    wrapped = cluster.container.runtime in ("apptainer", "podman")
    return shlex.quote(sys.executable if wrapped else spec.argv[0])


def _script(folder: Path, python: str, parameters: Mapping[str, Any], tasks: int | None) -> str:
    """The text that submitit would send; tests/slurm compares it with what it did send.

    ``SlurmExecutor`` itself can't be made where there is no srun, as on a laptop that renders.
    """
    _submitit()
    from submitit.slurm.slurm import _make_sbatch_string

    command = f"{python} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    text: str = _make_sbatch_string(command=command, folder=folder, map_count=tasks, **parameters)
    return text


def _submitit() -> Any:
    try:
        import submitit
    except ModuleNotFoundError as error:
        hint = "pip install 'megatron-toolkit[slurm]', or set submit_with: sbatch"
        message = "submit_with is submitit, which is not installed here"
        raise ToolkitError(message, hint=hint) from error
    return submitit
