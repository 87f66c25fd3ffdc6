"""What the estimate of speed knows of a type of GPU; the types are in ``toolkit.plan.hardware``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """One type of GPU; rates are for dense matrices, in operations or bytes a second."""

    name: str
    memory: float
    """Bytes, as nvidia-smi shows them."""
    watts: float
    """Thermal design power, of the data sheet."""
    sms: int
    """Streaming multiprocessors."""
    peak: dict[str, float]
    """Of the tensor cores, by format: bf16, fp8, fp4; fp32 of the others, for matrices in FP32 take
    no tensor core unless TF32 is asked for. Of the data sheet."""
    matmul: dict[str, float]
    """Share of the peak that the best shapes reach, by format."""
    attention: tuple[float, float]
    """Operations a second of fused attention: forward and backward, heads of 128, long rows."""
    hbm: float
    """Bytes a second that streaming kernels move."""
    nvlink: float
    """Bus bandwidth (as nccl-tests define it) of a ring inside a node, bytes a second."""

    def format_of(self, wanted: str) -> str:
        """The format that matrices really run in: an older GPU has no FP8 or FP4."""
        for known in (wanted, "fp8" if wanted == "fp4" else "bf16", "bf16"):
            if known in self.peak:
                return known
        raise AssertionError(self.name)
