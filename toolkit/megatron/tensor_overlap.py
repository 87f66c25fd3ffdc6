"""Settings of ``tp_comm_overlap``: tensor parallelism's communication behind its matrix products.

The names are those of ``ModelParallelConfig`` of megatron-core, and of ``initialize_ub`` of
TransformerEngine, whose user buffers do it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from toolkit.stage import Settings

Product = Literal[
    "qkv_fprop", "qkv_dgrad", "qkv_wgrad", "proj_fprop", "proj_dgrad", "proj_wgrad",
    "fc1_fprop", "fc1_dgrad", "fc1_wgrad", "fc2_fprop", "fc2_dgrad", "fc2_wgrad",
]  # fmt: skip
SCATTERS = ("proj_fprop", "fc2_fprop", "qkv_dgrad", "fc1_dgrad")
"""Products whose output is scattered, or can be; the others gather, or run beside one of these."""
SHARED = {"qkv_wgrad": "qkv_dgrad", "fc1_wgrad": "fc1_dgrad"}
"""Products beside which the scatter of another one's output runs, if that does it in bulk."""


class UserBuffer(Settings):
    """How one matrix product overlaps; what is left out TransformerEngine chooses."""

    method: Literal["ring_exchange", "pipeline", "bulk", "external"] | None = Field(
        default=None,
        description="In a ring of pieces, in a pipeline of pieces, or in one piece beside another"
        " product.",
    )
    num_sm: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Multiprocessors that communicate."
    )
    cga_size: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Thread blocks in a cluster."
    )
    set_sm_margin: bool | None = Field(
        default=None, description="Keep those multiprocessors free of the product."
    )
    num_splits: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Pieces of a pipeline."
    )
    aggregate: bool | None = Field(default=None, description="Two pieces of a ring at a time.")
    atomic_gemm: bool | None = Field(
        default=None, description="One product that hands out its pieces (FP8, experimental)."
    )
    use_ce: bool | None = Field(default=None, description="Copy by the copy engines.")
    fp8_buf: bool | None = Field(default=None, description="Scatter in FP8 (pipeline alone).")
    comm_priority: int | None = Field(default=None, description="Of the communication's stream.")
    gemm_priority: int | None = Field(default=None, description="Of the product's stream.")
    pipeline_rs_overlap_first_gemm: bool | None = Field(
        default=None, description="Scatter the first piece, too, beside a product."
    )


class TensorOverlapSettings(Settings):
    """Whether and how gathers and scatters of sequence parallelism are hidden."""

    tp_comm_overlap: bool = Field(
        default=False,
        description="Gather and scatter in pieces while the matrices multiply"
        " (TransformerEngine's user buffers).",
    )
    tp_comm_overlap_cfg: dict[Product, UserBuffer] | None = Field(
        default=None,
        description="How each product overlaps: the content of Megatron-LM's file of that name.",
    )
    tp_comm_overlap_ag: bool = Field(
        default=True, description="Of tp_comm_overlap: gather in pieces before a product."
    )
    tp_comm_overlap_rs: bool = Field(
        default=True, description="Of tp_comm_overlap: scatter in pieces behind a product."
    )
    tp_comm_overlap_rs_dgrad: bool = Field(
        default=False,
        description="Of tp_comm_overlap: scatter the input's gradient behind its own product, not"
        " beside that of the weights.",
    )
    tp_comm_bootstrap_backend: Literal["nccl", "gloo", "mpi"] = Field(
        default="nccl", description="What the user buffers of the ranks find each other by."
    )

    def user_buffers(self) -> dict[str, dict[str, Any]]:
        """``tp_comm_overlap_cfg`` as ``initialize_ub`` takes it."""
        given = self.tp_comm_overlap_cfg or {}
        return {name: buffer.model_dump(exclude_none=True) for name, buffer in given.items()}

    @model_validator(mode="after")
    def _buffers_are_possible(self) -> Self:
        """Refuse what ``initialize_ub`` would (TransformerEngine ``module/base.py``)."""
        given = {str(name): b for name, b in (self.tp_comm_overlap_cfg or {}).items()}
        if given and not self.tp_comm_overlap:
            raise ValueError("tp_comm_overlap_cfg says how tp_comm_overlap is done, which is off")
        for name, buffer in given.items():
            if buffer.method == "pipeline" and name not in SCATTERS:
                raise ValueError(
                    f"tp_comm_overlap_cfg.{name}: only what is scattered goes in a pipeline"
                    f" ({', '.join(SCATTERS)}); a gather in a ring_exchange"
                )
        for name, other in SHARED.items():
            method = given[other].method if other in given else None
            if name in given and method not in (None, "bulk"):
                raise ValueError(
                    f"tp_comm_overlap_cfg.{name}: {other} is {method} and has its scatter to"
                    f" itself; leave {name} out, or take bulk there"
                )
        return self
