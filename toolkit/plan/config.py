"""What a cluster's profile may say for planning: prices, power, and what was measured there."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from toolkit.stage import Settings

CALIBRATED = ("sustained", "layer_floor", "moe_floor", "fragmentation")
"""Settings that stand for a constant of the same name (``toolkit.plan.hardware.Tuning``)."""
Amount = Annotated[float, Field(gt=0)]


class Planning(Settings):
    """For ``toolkit plan`` alone; no job is other for it."""

    gpu: str | None = Field(
        default=None, description="The GPUs' type, where node.gpu_type does not say it: h100."
    )
    gpu_hour: Amount | None = Field(default=None, description="Price of a GPU for an hour.")
    currency: str = Field(default="USD", description="What gpu_hour is in.")
    watts: Amount | None = Field(
        default=None,
        description="Power of a GPU with its share of the node; by default the data sheet's of the"
        " GPU alone.",
    )
    pue: Annotated[float, Field(ge=1)] = Field(
        default=1.0, description="Power of the building over that of its machines."
    )
    network_gbps: Amount | None = Field(
        default=None,
        description="Gb/s between nodes for each GPU; by default what the network's kind has.",
    )
    nvlink_domain: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="GPUs that NVLink joins, where those are more than a node's: 72 for an NVL72.",
    )
    sustained: Annotated[float, Field(gt=0, le=1.5)] | None = Field(
        default=None,
        description="Of the best rates of matrices and attention, what a training keeps; this and"
        " the next ones are what toolkit plan --calibrate finds.",
    )
    layer_floor: Amount | None = Field(
        default=None, description="Seconds that the host takes for a layer's forward pass."
    )
    moe_floor: Amount | None = Field(default=None, description="The same of a layer with experts.")
    fragmentation: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="Memory that the allocator can't use, over what it gives out."
    )
