"""How the model is cut over the ranks, and what is sent while the ranks compute.

The names are those of ``ModelParallelConfig``, ``TransformerConfig`` and
``DistributedDataParallelConfig`` of megatron-core.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from toolkit.megatron.fsdp import FSDPSettings
from toolkit.megatron.pipeline_layout import LayoutMistake, LayoutSetting, stages_of
from toolkit.megatron.tensor_overlap import TensorOverlapSettings
from toolkit.stage import Settings

Count = Annotated[int, Field(ge=1)]


class PipelineSettings(Settings):
    """Which layers each pipeline rank has, and in what order it works on them."""

    pipeline_model_parallel_size: Count = Field(
        default=1, description="Ranks in a row, each with a part of the layers."
    )
    virtual_pipeline_model_parallel_size: Count | None = Field(
        default=None,
        description="Parts of the layers on each pipeline rank (the interleaved schedule).",
    )
    microbatch_group_size_per_vp_stage: Count | None = Field(
        default=None,
        description="Microbatches that one part takes before the next part's turn; by default"
        " pipeline_model_parallel_size.",
    )
    num_layers_in_first_pipeline_stage: Count | None = Field(
        default=None, description="Layers of the first rank, where it has fewer than the others."
    )
    num_layers_in_last_pipeline_stage: Count | None = Field(
        default=None, description="Layers of the last rank, where it has fewer than the others."
    )
    account_for_embedding_in_pipeline_split: bool = Field(
        default=False, description="Count the embedding as a layer when layers are dealt out."
    )
    account_for_loss_in_pipeline_split: bool = Field(
        default=False, description="Count the output layer and the loss as a layer, too."
    )
    pipeline_model_parallel_layout: LayoutSetting | None = Field(
        default=None,
        description="The layers of every stage in Megatron's notation, such as Et*3|(tt|)*29,L; or"
        " as a list with a list of embedding, decoder and loss for each.",
    )
    overlap_p2p_comm: bool | None = Field(
        default=None,
        description="Send between pipeline ranks while computing; by default with the interleaved"
        " schedule on GPUs.",
    )


class SequenceSettings(Settings):
    """Which ranks share a sequence."""

    sequence_parallel: bool = Field(
        default=False,
        description="Share norms and dropout over the tensor-parallel ranks, by tokens.",
    )
    context_parallel_size: Count = Field(
        default=1, description="Ranks that share every sequence, attention included."
    )
    cp_comm_type: Literal["p2p", "a2a", "all_gather", "a2a+p2p"] = Field(
        default="p2p", description="How attention's keys and values travel in context parallelism."
    )
    hierarchical_context_parallel_sizes: list[Count] | None = Field(
        default=None, description="Inner (a2a) and outer (p2p) size of cp_comm_type a2a+p2p."
    )


class ExpertParallelSettings(Settings):
    """Which ranks share the experts of a layer, and how tokens reach them."""

    expert_model_parallel_size: Count = Field(
        default=1, description="Ranks that the experts of a layer are dealt out to."
    )
    expert_tensor_parallel_size: Count | None = Field(
        default=None,
        description="Ranks that share each expert's matrices; by default as many as"
        " tensor_model_parallel_size.",
    )
    moe_token_dispatcher_type: Literal["allgather", "alltoall", "flex"] = Field(
        default="alltoall", description="How tokens travel to their experts and back."
    )
    moe_grouped_gemm: bool = Field(
        default=False, description="Multiply with all experts of a rank in one kernel."
    )
    moe_permute_fusion: bool = Field(
        default=False, description="Sort tokens by expert in one kernel (TransformerEngine 2.1)."
    )
    moe_router_fusion: bool = Field(
        default=False,
        description="Choose experts, and find the balancing loss, in one kernel (TransformerEngine"
        " 2.7).",
    )
    moe_shared_expert_overlap: bool = Field(
        default=False, description="Run the shared experts while tokens travel."
    )
    overlap_moe_expert_parallel_comm: bool = Field(
        default=False, description="Send one microbatch's tokens while computing with another's."
    )
    delay_wgrad_compute: bool = Field(
        default=False, description="Compute weights' gradients later, to fill that overlap."
    )


class ParallelConfig(
    PipelineSettings, SequenceSettings, TensorOverlapSettings, ExpertParallelSettings, FSDPSettings
):
    """How the model is cut over the ranks; what is left over is data parallelism."""

    tensor_model_parallel_size: Count = Field(
        default=1, description="Ranks that share every layer's matrices."
    )
    overlap_grad_reduce: bool | None = Field(
        default=None,
        description="Reduce gradients during the backward pass; by default on GPUs with data"
        " parallelism.",
    )
    overlap_param_gather: bool = Field(
        default=False,
        description="Gather the distributed optimizer's new weights during the forward pass.",
    )

    num_distributed_optimizer_instances: Count = Field(
        default=1,
        description="Copies of the distributed optimizer's state: it is sharded over a part of the"
        " data-parallel ranks only.",
    )

    @property
    def model_parallel_size(self) -> int:
        """Ranks that hold one copy of the model and share one sequence: TP x PP x CP."""
        return (
            self.tensor_model_parallel_size
            * self.pipeline_model_parallel_size
            * self.context_parallel_size
        )

    @property
    def expert_tensor_size(self) -> int:
        """Ranks that share each expert's matrices, the default filled in."""
        return self.expert_tensor_parallel_size or self.tensor_model_parallel_size

    @property
    def expert_ranks(self) -> int:
        """Ranks that hold all experts once: ETP x EP x PP."""
        return (
            self.expert_tensor_size
            * self.expert_model_parallel_size
            * self.pipeline_model_parallel_size
        )

    @property
    def model_chunks(self) -> int:
        """Parts of the model on each rank: 1 without the interleaved schedule.

        A layout's stages say it, too, where the setting is left out.
        """
        if self.virtual_pipeline_model_parallel_size is not None:
            return self.virtual_pipeline_model_parallel_size
        return max(1, len(self.layout_stages) // self.pipeline_model_parallel_size)

    @property
    def layout_stages(self) -> tuple[str, ...]:
        """The letters of each stage of ``pipeline_model_parallel_layout``; none where there is no
        layout, or one that can't be read, which ``toolkit check`` refuses."""
        if self.pipeline_model_parallel_layout is None:
            return ()
        try:
            return stages_of(self.pipeline_model_parallel_layout)
        except LayoutMistake:
            return ()
