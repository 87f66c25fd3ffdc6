"""The texts in a cluster's profile: variables' names, lines of bash, options of sbatch."""

from __future__ import annotations

import re
from typing import Annotated, Any

from packaging.version import InvalidVersion
from packaging.version import Version as Parsed
from pydantic import AfterValidator, BeforeValidator

from toolkit.pipeline.problems import HiddenValueError

OURS = frozenset(
    {
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
        "TOOLKIT_PHASE",
        "SRUN_CPUS_PER_TASK",
        "PYTHONPATH",
        "PYTHONSAFEPATH",
        "PYTHONUNBUFFERED",
    }
)
"""What every job sets by itself."""
OUR_OPTIONS = frozenset(
    {
        "--account",
        "--array",
        "--constraint",
        "--cpus-per-task",
        "--dependency",
        "--error",
        "--exclude",
        "--exclusive",
        "--export",
        "--gpus-per-node",
        "--job-name",
        "--kill-on-invalid-dep",
        "--mem",
        "--no-requeue",
        "--nodes",
        "--ntasks",
        "--ntasks-per-node",
        "--open-mode",
        "--output",
        "--parsable",
        "--partition",
        "--qos",
        "--requeue",
        "--reservation",
        "--segment",
        "--signal",
        "--time",
        "--wait",
    }
)
"""The options of sbatch that every job, or its submission, has by itself."""
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
SECRET = re.compile(r"(?i)(^|_)(key|token|secret|password|passwd|credentials?)$")
"""How the names of variables end that hold secrets, as far as a name can say."""


def _valid_variable(name: str) -> str:
    if not _VARIABLE.fullmatch(name):
        raise ValueError("must be a variable's name: letters, digits and '_'")
    if name in OURS or name.startswith("SLURM_"):
        raise ValueError("is set by the job itself, or by Slurm")
    return name


def _valid_secret(name: str) -> str:
    if not _VARIABLE.fullmatch(name):
        message = "must be a variable's name, without its value: letters, digits and '_'"
        raise HiddenValueError(message)
    return _valid_variable(name)


def _valid_line(text: str) -> str:
    if "\n" in text or "\0" in text:
        raise ValueError("must be one line")
    return text


def _valid_option(text: str) -> str:
    if not re.fullmatch(r"--[a-z][a-z0-9-]*(=[^\s\"'\\#]+)?", text):
        raise ValueError("must be one option of sbatch, such as --switches=1")
    if text.partition("=")[0] in OUR_OPTIONS:
        raise ValueError(
            "is set by the toolkit: from the profile, a stage's resources, or the graph"
        )
    return text


def _valid_version(text: str) -> str:
    try:
        Parsed(text)
    except InvalidVersion:
        raise ValueError(f"must be a version in quotes, such as {QUOTED}") from None
    return text


QUOTED = "'2.8.0' or '12.9'"


def _quoted(value: Any) -> Any:
    if isinstance(value, (int, float)):  # to YAML 2.10 is 2.1
        raise ValueError(f"must be in quotes, such as {QUOTED}: YAML reads a number")
    return value


Version = Annotated[str, BeforeValidator(_quoted), AfterValidator(_valid_version)]
Variable = Annotated[str, AfterValidator(_valid_variable)]
SecretName = Annotated[str, AfterValidator(_valid_secret)]
Line = Annotated[str, AfterValidator(_valid_line)]
Option = Annotated[str, AfterValidator(_valid_option)]
