"""Plans as plain dictionaries, for programs: the whole tables, each key with its unit."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from toolkit.plan.calibration import Calibration, RunFit
from toolkit.plan.memory import StageMemory
from toolkit.plan.scaling import FLOPS_PER_PARAMETER, Law, Trained, optima
from toolkit.plan.search import Candidate, Found, why_slower
from toolkit.plan.settings import settings_of
from toolkit.plan.shape import Layout, stage_layers
from toolkit.plan.sizing import Sizing
from toolkit.plan.throughput import Estimate

Plain = dict[str, Any]


def plain_sizing(sizing: Sizing) -> Plain:
    """Layout, layers by pipeline rank and model chunk, memory by pipeline stage, speed, cost, and
    how the compute would best be spent."""
    flops = float(FLOPS_PER_PARAMETER * sizing.active_parameters) * sizing.cost.tokens
    return {
        "parameters": sizing.parameters,
        "active_parameters": sizing.active_parameters,
        "gpu": sizing.hardware.gpu.name,
        "layout": plain_layout(sizing.run.layout),
        "layers": [list(rank) for rank in stage_layers(sizing.run.model, sizing.run.layout)],
        "fits": sizing.fits,
        "gpu_memory_bytes": sizing.hardware.gpu.memory,
        "memory": [plain_memory(stage) for stage in sizing.memory],
        "speed": plain_speed(sizing.estimate),
        "cost": asdict(sizing.cost) | {"days": sizing.cost.days},
        "compute": {"flops": flops, "best_spent_on": [asdict(best) for best in optima(flops)]},
    }


def plain_memory(stage: StageMemory) -> Plain:
    """One rank of a pipeline stage; but for its number and its parameters all is in bytes."""
    numbers = asdict(stage)
    found = {name: numbers.pop(name) for name in ("stage", "parameters")}
    found |= {f"{name}_bytes": round(value) for name, value in numbers.items()}
    return found | {"total_bytes": round(stage.total)}


def plain_layout(layout: Layout) -> Plain:
    """All degrees, and the batch."""
    return {
        "gpus": layout.world_size,
        "tensor": layout.tp,
        "pipeline": layout.pp,
        "virtual_pipeline": layout.vpp,
        "context": layout.cp,
        "expert": layout.ep,
        "expert_tensor": layout.expert_tp,
        "data": layout.dp,
        "fsdp": layout.fsdp,
        "micro_batch_size": layout.micro_batch_size,
        "global_batch_size": layout.global_batch_size,
        "num_microbatches": layout.num_microbatches,
        "seq_length": layout.seq_length,
        "recompute": asdict(layout.recompute),
    }


def plain_speed(estimate: Estimate) -> Plain:
    """Step, rates, and the seconds of a step by what they are spent on."""
    return {
        "step_seconds": estimate.step_seconds,
        "tokens_per_second_per_gpu": estimate.tokens_per_second_per_gpu,
        "model_tflops_per_gpu": estimate.tflops_per_gpu,
        "mfu": estimate.mfu,
        "peak_tflops": estimate.peak / 1e12,
        "number_format": estimate.number_format,
        "spent_seconds": dict(estimate.spent.items()),
    }


def plain_found(found: Found, given: Layout, seconds: float) -> Plain:
    """The layouts of a search, each with the settings that make it.

    Args:
        found: what was found.
        given: the layout that the file has, which the settings change.
        seconds: that the search took.
    """
    first = found.best[0].estimate if found.best else None
    return {
        "looked_at": found.looked_at,
        "seconds": round(seconds, 3),
        "best": [_candidate(each, given, first) for each in found.best],
        "too_large": _candidate(found.too_large, given, first) if found.too_large else None,
        "smallest": _candidate(found.smallest, given, None) if found.smallest else None,
        "refused": list(found.refused),
    }


def _candidate(candidate: Candidate, given: Layout, first: Estimate | None) -> Plain:
    found: Plain = {
        "settings": settings_of(candidate.layout, given),
        "layout": plain_layout(candidate.layout),
        "fullest": plain_memory(candidate.memory),
        "speed": plain_speed(candidate.estimate),
    }
    if first is not None:
        found["slower"] = candidate.estimate.step_seconds / first.step_seconds - 1
        found["why"] = why_slower(candidate.estimate, first) if found["slower"] else ""
    return found


def plain_calibration(found: Calibration) -> Plain:
    """Each run, measured and estimated, and the constants."""
    return {
        "runs": [_run_fit(each) for each in found.runs],
        "constants": [asdict(each) for each in found.fitted],
        "left": dict(found.left),
        "planning": found.planning(),
    }


def _run_fit(fit: RunFit) -> Plain:
    measured = fit.measured
    return {
        "run": measured.trained.name,
        "measured": {
            "step_seconds": measured.step_seconds,
            "memory_gib": measured.memory_gib,
            "memory_reserved_gib": measured.reserved_gib,
        },
        "before": {"step_seconds": fit.before},
        "after": {"step_seconds": fit.after},
        "estimated": {"memory_gib": fit.allocated_gib},
    }


def plain_scaling(runs: list[Trained], law: Law) -> Plain:
    """The runs, and the law through them."""
    return {
        "runs": [asdict(run) | {"flops": run.flops, "law": law.loss(run.flops)} for run in runs],
        "law": {
            "floor": law.floor,
            "scale_flops": law.scale,
            "exponent": law.exponent,
            "exponent_error": law.exponent_error,
            "error_nats": law.error,
        },
    }
