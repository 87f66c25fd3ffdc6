"""What the rules of layouts need to know of a cluster: its GPUs, and what is installed."""

from __future__ import annotations

from toolkit.launch.cluster import Cluster
from toolkit.plan.machine import capability_of, installed
from toolkit.plan.shape import Machine

PACKAGES = {
    "transformer_engine": "transformer-engine",
    "torch": "torch",
    "megatron_core": "megatron-core",
}


def machine_of(cluster: Cluster) -> Machine:
    """A profile's machine; a version that neither it nor this environment tells is None.

    Without a container the ranks run with the packages that are installed here: the environment is
    on a file system that all nodes share. What an image has only the profile's ``software`` says.
    """
    said = {name: getattr(cluster.software, name) for name in (*PACKAGES, "cuda")}
    if cluster.container.runtime == "none" and cluster.node.gpus:
        here = {name: installed(package) for name, package in PACKAGES.items()}
        here["cuda"] = cuda_of(here["torch"])
        said = {name: version or here[name] for name, version in said.items()}
    return Machine(
        gpu=cluster.node.gpu_type,
        capability=capability_of(cluster.node.gpu_type),
        gpus_per_node=cluster.node.gpus or None,
        environment=tuple(cluster.variables().items()),
        **said,
    )


def cuda_of(torch: str | None) -> str | None:
    """The CUDA that a build of torch was made for: ``2.13.0+cu129`` is ``12.9``."""
    build = (torch or "").partition("+cu")[2]
    return f"{build[:-1]}.{build[-1]}" if build.isdigit() else None
