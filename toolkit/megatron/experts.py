"""Settings of a mixture of experts (MoE); the names are ``TransformerConfig``'s own."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from toolkit.stage import Settings

Count = Annotated[int, Field(ge=1)]


class ExpertSettings(Settings):
    """Which layers have experts in place of one MLP, and how tokens choose among them."""

    num_moe_experts: Count | None = Field(
        default=None, description="Experts of a layer; a dense model leaves this out."
    )
    moe_router_topk: Count = Field(default=2, description="Experts that each token goes to.")
    moe_ffn_hidden_size: Count | None = Field(
        default=None, description="Inner width of one expert; by default ffn_hidden_size."
    )
    moe_layer_freq: Count | list[Literal[0, 1]] = Field(
        default=1,
        description="Every n-th layer has experts, the first one included; or a list with a 1 for"
        " each layer that has them and a 0 for each other.",
    )
    moe_shared_expert_intermediate_size: Count | None = Field(
        default=None,
        description="Inner width of the experts that every token goes to, all together.",
    )
    moe_shared_expert_gate: bool = Field(
        default=False, description="Gate the shared experts' output, as Qwen2-MoE does."
    )
    moe_router_load_balancing_type: Literal["aux_loss", "seq_aux_loss", "sinkhorn", "none"] = Field(
        default="aux_loss", description="What keeps the experts evenly loaded."
    )
    moe_aux_loss_coeff: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="Weight of the load-balancing loss; 1e-2 is a usual value."
    )
    moe_z_loss_coeff: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="Weight of the router's z-loss; 1e-3 is a usual value."
    )
    moe_router_pre_softmax: bool = Field(
        default=False, description="Take the softmax before the choice of experts, not after it."
    )
    moe_router_score_function: Literal["softmax", "sigmoid"] = Field(
        default="softmax", description="What makes scores of the router's logits."
    )
    moe_router_topk_scaling_factor: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="What the scores of the chosen experts are multiplied with."
    )
    moe_router_num_groups: Count | None = Field(
        default=None, description="Groups of experts, for choosing among a few groups only."
    )
    moe_router_group_topk: Count | None = Field(
        default=None, description="Groups that a token's experts may be in."
    )
    moe_router_enable_expert_bias: bool = Field(
        default=False, description="Balance by a bias on the scores, without a loss (DeepSeek-V3)."
    )
    moe_router_dtype: Literal["fp32", "fp64"] | None = Field(
        default=None, description="Number format of the router; by default that of the weights."
    )
    moe_expert_capacity_factor: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="Tokens that an expert takes at most, as a multiple of an even share; by"
        " default none is dropped.",
    )
    moe_pad_expert_input_to_capacity: bool = Field(
        default=False, description="Give every expert as many tokens as its capacity allows."
    )
