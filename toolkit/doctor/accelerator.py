"""GPUs, the driver, TransformerEngine, apex, and the fused kernels that stages will use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from toolkit.doctor.facts import GPU, Torch, probe
from toolkit.doctor.finding import Finding, ask
from toolkit.doctor.software import required, version_of

GIB = 1 << 30
GPU_IMAGE = "the GPU image (make image) has a torch, TransformerEngine and apex that fit together"


def nvidia_smi() -> list[str]:
    """``name, driver version`` of each GPU that the driver knows; empty without a driver."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    answer = ask(query, seconds=20)
    return answer.text.strip().splitlines() if answer is not None and answer.ok else []


def check_gpus(torch: Torch) -> Iterator[Finding]:
    """torch sees the GPUs that the driver knows, and has kernels for them."""
    known = nvidia_smi()
    if torch.gpus:
        yield from _seen(torch, known)
    elif known:
        yield _unseen(torch, known)
    elif torch.cuda:
        yield Finding(
            "GPUs",
            "info",
            f"none visible, though torch is built for CUDA {torch.cuda}; stages run on the CPU",
            "in a container: --gpus all (Docker), --nv (Apptainer), nvidia.com/gpu (Kubernetes)",
        )
    else:
        yield Finding("GPUs", "info", "none; stages run on the CPU")


def _seen(torch: Torch, known: list[str]) -> Iterator[Finding]:
    counts = Counter(torch.gpus)
    driver = known[0].rpartition(", ")[2] if known else "of unknown version"
    supported = f"CUDA {torch.driver // 1000}.{torch.driver % 1000 // 10}"
    detail = "; ".join(f"{count} x {describe(gpu)}" for gpu, count in counts.items())
    detail = f"{detail}; driver {driver}, for {supported}"
    lacking = sorted({gpu.name for gpu in counts if not runs_on(gpu, torch.architectures)})
    if lacking:
        yield Finding(
            "GPUs",
            "fail",
            f"{detail}. This torch has no kernels for {', '.join(lacking)}: it was compiled for"
            f" {', '.join(torch.architectures)}",
            f"install a build of torch for this GPU; {GPU_IMAGE}",
        )
    elif len(counts) > 1:
        yield Finding(
            "GPUs", "warn", detail, "ranks wait for the slowest: train on one model alone"
        )
    else:
        yield Finding("GPUs", "ok", detail)


def describe(gpu: GPU) -> str:
    """``NVIDIA H200, 139.8 GiB, compute capability 9.0``."""
    major, minor = gpu.capability
    return f"{gpu.name}, {gpu.memory / GIB:.1f} GiB, compute capability {major}.{minor}"


def runs_on(gpu: GPU, architectures: tuple[str, ...]) -> bool:
    """Whether code compiled for ``architectures`` runs on the GPU.

    ``sm_80`` runs on 8.0 and later minors of 8; ``compute_80`` (PTX) on all that came after;
    ``sm_90a`` on 9.0 alone. CUDA C++ Programming Guide, "Binary Compatibility".
    """
    return any(_compatible(gpu.capability, name) for name in architectures)


def _compatible(capability: tuple[int, int], architecture: str) -> bool:
    kind, _, digits = architecture.partition("_")
    number = digits.rstrip("af")
    built = (int(number[:-1]), int(number[-1]))
    if digits.endswith("a"):
        return capability == built
    if kind == "compute" and not digits.endswith("f"):
        return capability >= built
    return capability[0] == built[0] and capability >= built


def _unseen(torch: Torch, known: list[str]) -> Finding:
    here = f"{len(known)} GPU{'s' if len(known) > 1 else ''} here ({known[0]})"
    if not torch.installed:
        return Finding("GPUs", "info", f"{here}; no torch to use them", GPU_IMAGE)
    if not torch.cuda:
        return Finding(
            "GPUs",
            "warn",
            f"{here}, but torch {torch.version} is a CPU build",
            f"install a CUDA build of torch; {GPU_IMAGE}",
        )
    why = "; ".join(torch.complaints) or "CUDA_VISIBLE_DEVICES may hide them"
    return Finding(
        "GPUs",
        "fail",
        f"{here}, but torch (for CUDA {torch.cuda}) sees none: {why}",
        "update the driver, or install a torch built for an older CUDA",
    )


def check_transformer_engine(torch: Torch) -> Iterator[Finding]:
    """TransformerEngine is there where GPUs are, in range, and can be imported."""
    package = required("transformer-engine", "gpu")
    name = "TransformerEngine"
    if package.installed is None:
        if torch.gpus:
            yield Finding(name, "fail", "not installed: pretrain on a GPU needs it", GPU_IMAGE)
        else:
            yield Finding(name, "info", "not installed; only GPUs need it")
    elif not package.in_range:
        yield Finding(name, "fail", str(package.installed), f"{package.wanted} is needed")
    elif not torch.gpus:
        yield Finding(name, "ok", f"{package.installed}; not tried, since there is no GPU")
    elif error := try_import("transformer_engine.pytorch"):
        yield Finding(
            name,
            "fail",
            f"{package.installed} can't be imported: {error}",
            f"it must be built for this torch ({torch.version}); {GPU_IMAGE}",
        )
    else:
        yield Finding(name, "ok", package.installed)


def try_import(module: str) -> str:
    """Why a module can't be imported beside torch, in a process of its own; empty if it can."""
    said, error = probe("imports", "torch", module)
    return error if said is None else str(said[module])


def check_apex(torch: Torch) -> Iterator[Finding]:
    """NVIDIA's apex, or nothing: PyPI's package of that name is another program.

    Nothing is imported: PyPI's is code for Python 2. megatron-core takes whatever ``apex`` it can
    import for NVIDIA's.
    """
    folder = find_package("apex")
    if folder is None:
        yield Finding("apex", "info", "not installed; TransformerEngine has what it is used for")
    elif not (folder / "optimizers" / "fused_adam.py").is_file():
        summary = _summary_of("apex")
        yield Finding(
            "apex",
            "fail",
            f"{folder} is not NVIDIA's apex{f': {summary!r}' if summary else ''}",
            "pip uninstall --yes apex; NVIDIA's comes with the GPU image or from its repository,"
            " never from the package index",
        )
    else:
        names = ("amp_C", "fused_weight_gradient_mlp_cuda", "fused_layer_norm_cuda")
        built = [name for name in names if find_spec(name) is not None]
        shown = f"with {', '.join(built)}" if built else "without compiled kernels"
        yield Finding("apex", "ok", f"NVIDIA's, {version_of('apex') or 'unversioned'}, {shown}")


def find_package(name: str) -> Path | None:
    """The folder of an importable package; the package itself is not imported."""
    spec = find_spec(name)
    places = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places[0]) if places else None


def _summary_of(name: str) -> str:
    try:
        return str(metadata.metadata(name).json.get("summary", ""))
    except metadata.PackageNotFoundError:
        return ""


def check_kernels(torch: Torch) -> Iterator[Finding]:
    """Which implementation each operation of a training step will use, where there is a GPU."""
    if not torch.gpus:
        yield Finding("fused kernels", "info", "none on the CPU; torch's own operators")
        return
    engine = version_of("transformer-engine") is not None
    flash = version_of("flash-attn") or version_of("flash-attn-3")
    adam = "TransformerEngine" if engine else "apex" if find_spec("amp_C") else ""
    attention = "TransformerEngine, by cuDNN" if engine else "torch"
    attention += f" or flash-attn {flash}" if flash else ""
    yield Finding("attention", "ok" if engine else "warn", attention)
    yield Finding(
        "norms and linear layers",
        "ok" if engine else "warn",
        "TransformerEngine, norm fused into the linear layer, FP8" if engine else "torch",
        "" if engine else GPU_IMAGE,
    )
    yield Finding("cross entropy", "ok", "megatron-core's fused one, over the split vocabulary")
    yield Finding(
        "Adam",
        "ok" if adam else "warn",
        f"fused, from {adam}" if adam else "torch's: one kernel per tensor",
        "" if adam else GPU_IMAGE,
    )
    yield _gradient_accumulation()


def _gradient_accumulation() -> Finding:
    if find_spec("fused_weight_gradient_mlp_cuda") is not None:
        return Finding("gradient accumulation", "ok", "fused into the weight's GEMM, from apex")
    return Finding(
        "gradient accumulation",
        "info",
        "a kernel of its own: apex's fused_weight_gradient_mlp_cuda is not here",
        "NVIDIA's apex, built with its CUDA extensions, fuses it; the GPU image has it",
    )
