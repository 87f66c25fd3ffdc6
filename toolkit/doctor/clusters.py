"""Slurm's and Kubernetes' clients, and container runtimes."""

from __future__ import annotations

import json
from collections.abc import Iterator

from toolkit.doctor.facts import Torch
from toolkit.doctor.finding import Answer, Finding, ask

RUNTIMES = ("enroot", "apptainer", "singularity", "podman", "docker")


def check_slurm(torch: Torch) -> Iterator[Finding]:
    """sbatch is there, a controller answers, and accounting keeps finished jobs."""
    client = ask(["sbatch", "--version"])
    if client is None:
        yield Finding("Slurm", "info", "no sbatch here; submitting to Slurm needs a login node")
        return
    controller = ask(["scontrol", "ping"])
    if not client.ok or controller is None or not controller.ok or "DOWN" in controller.text:
        said = next((a.line for a in (controller, client) if a and a.line), "no answer")
        yield Finding(
            "Slurm",
            "warn",
            f"{client.line or 'sbatch'}, and no controller answers: {said}",
            "check SLURM_CONF and munge; scontrol ping must say UP",
        )
        return
    yield Finding("Slurm", "ok", f"{client.line}; {controller.line}")
    yield from _accounting()
    yield from _pyxis()


def _accounting() -> Iterator[Finding]:
    answer = ask(["sacct", "--noheader", "--allocations", "--starttime", "now"])
    if answer is not None and answer.ok:
        yield Finding("Slurm accounting", "ok", "sacct answers")
    else:
        yield Finding(
            "Slurm accounting",
            "warn",
            f"sacct: {answer.line if answer else 'no such command'}",
            "a job that left the queue is known from its run folder alone; ask for slurmdbd",
        )


def _pyxis() -> Iterator[Finding]:
    answer = ask(["srun", "--help"])
    if answer is not None and "--container-image" in answer.text:
        yield Finding("Pyxis", "ok", "srun takes --container-image")
    else:
        yield Finding("Pyxis", "info", "srun has no --container-image: jobs use Apptainer or none")


def check_kubernetes(torch: Torch) -> Iterator[Finding]:
    """kubectl is there, has a context, and its API server answers."""
    client = ask(["kubectl", "version", "--client", "--output=json"])
    if client is None:
        yield Finding("Kubernetes", "info", "no kubectl here")
        return
    version = _git_version(client, "clientVersion")
    context = ask(["kubectl", "config", "current-context"])
    if context is None or not context.ok:
        yield Finding(
            "Kubernetes",
            "info",
            f"kubectl {version}, with no context",
            "kubectl config use-context NAME, or set KUBECONFIG",
        )
        return
    server = ask(["kubectl", "version", "--output=json", "--request-timeout=5s"], seconds=10)
    if server is None or not server.ok:
        yield Finding(
            "Kubernetes",
            "warn",
            f"kubectl {version}, context {context.line}: {server.line if server else 'no answer'}",
            "check the network and the credentials: kubectl get pods",
        )
        return
    detail = f"kubectl {version}, context {context.line}, server"
    yield Finding("Kubernetes", "ok", f"{detail} {_git_version(server, 'serverVersion')}")


def _git_version(answer: Answer, which: str) -> str:
    try:
        return str(json.loads(answer.text)[which]["gitVersion"])
    except (ValueError, KeyError):
        return "of unknown version"


def check_containers(torch: Torch) -> Iterator[Finding]:
    """Which container runtimes there are."""
    answers = {
        name: ask([name, "version" if name == "enroot" else "--version"]) for name in RUNTIMES
    }
    found = [f"{name} ({a.line})" if a.ok else name for name, a in answers.items() if a is not None]
    if found:
        yield Finding("containers", "ok", ", ".join(found))
    else:
        yield Finding("containers", "info", f"none of {', '.join(RUNTIMES)}")
