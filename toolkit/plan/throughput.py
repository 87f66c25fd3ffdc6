"""How long a step takes, and where the time goes."""

from __future__ import annotations

from dataclasses import dataclass

from toolkit.plan import traffic
from toolkit.plan.breakdown import Breakdown
from toolkit.plan.compute import (
    layer_parts,
    mlp_forward,
    output_parts,
)
from toolkit.plan.flops import flops_per_token
from toolkit.plan.hardware import Hardware
from toolkit.plan.kernels import Kernels, Parts, Seconds
from toolkit.plan.memory import gradient_width, optimizer_width, shards, step_width
from toolkit.plan.parameters import (
    Numel,
    chunk_layer_kinds,
    is_uneven,
    stage_layer_kinds,
    stage_numel,
    telling_stages,
)
from toolkit.plan.schedule import step_seconds
from toolkit.plan.shape import Layout, ModelShape, Precision, stage_layers


@dataclass(frozen=True)
class LayerTime:
    """One layer, or one end of the model, for one microbatch."""

    passes: Seconds
    spent: Breakdown


NOTHING = LayerTime(Seconds(), Breakdown())


@dataclass(frozen=True)
class Estimate:
    """The speed of one layout."""

    layout: Layout
    step_seconds: float
    tokens_per_second_per_gpu: float
    tflops_per_gpu: float
    """Of the model's own operations, in 1e12 a second."""
    mfu: float
    """Those over the peak of the format that the matrices run in."""
    peak: float
    """That peak, in operations a second."""
    number_format: str
    """That format: bf16, fp8, ..."""
    spent: Breakdown


class Estimator:
    """Estimates layouts of one model on one kind of hardware; what layouts share is kept."""

    def __init__(self, model: ModelShape, precision: Precision, hardware: Hardware) -> None:
        self.model, self.precision, self.hardware = model, precision, hardware
        self.kernels = Kernels(hardware, precision)
        self._layers: dict[tuple[object, ...], LayerTime] = {}
        self._peak = hardware.gpu.peak[self.kernels.format]

    def estimate(self, layout: Layout) -> Estimate:
        """The speed of a layout that the rules accept."""
        telling = telling_stages(self.model, layout)
        stages = [self._stage(layout, stage) for stage, _ in telling]
        weights = [alike / layout.pp for _, alike in telling]
        middle = _mean([s.spent for s in stages], weights)
        passes = _mean_passes([s.passes for s in stages], weights)
        slowest = max(s.passes.both for s in stages)
        batches = layout.num_microbatches
        spent = middle * batches
        bubble = self._bubble(layout, passes, slowest)
        spent += Breakdown(
            imbalance=batches * max(0.0, slowest - passes.both),
            bubble=bubble,
            pipeline=self._sends(layout),
        )
        spent += self._end_of_step(layout, passes)
        return self._rates(layout, spent)

    def _bubble(self, layout: Layout, passes: Seconds, slowest: float) -> float:
        """Filling and draining; and, where a rank's chunks are uneven, waiting for one another."""
        if not is_uneven(self.model, layout):
            return (layout.pp - 1) / layout.vpp * passes.both
        times = [
            [self._layers_of(layout, *kinds).passes for kinds in chunk_layer_kinds(*stage)]
            for stage in ((self.model, layout, number) for number in range(layout.pp))
        ]
        times[-1][-1] += self._output(layout).passes
        forward = [[chunk.forward for chunk in rank] for rank in times]
        backward = [[chunk.backward for chunk in rank] for rank in times]
        whole = step_seconds(layout, forward, backward)
        return whole - layout.num_microbatches * slowest

    def _rates(self, layout: Layout, spent: Breakdown) -> Estimate:
        step = spent.total
        assert self.model.vocab_size is not None
        tokens = layout.global_batch_size * layout.seq_length
        each = tokens / step / layout.world_size
        operations = flops_per_token(self.model, layout.seq_length, self.model.vocab_size)
        rate = operations * each
        return Estimate(
            layout=layout,
            step_seconds=step,
            tokens_per_second_per_gpu=each,
            tflops_per_gpu=rate / 1e12,
            mfu=rate / self._peak,
            peak=self._peak,
            number_format=self.kernels.format,
            spent=spent,
        )

    def _stage(self, layout: Layout, stage: int) -> LayerTime:
        """All layers of a stage, and the model's end where it is there."""
        found = self._layers_of(layout, *stage_layer_kinds(self.model, layout, stage))
        if stage == layout.pp - 1:
            found = _plus(found, self._output(layout))
        return found

    def _layers_of(self, layout: Layout, dense: int, experts: int) -> LayerTime:
        """So many dense layers, and so many with experts."""
        found = _times(self._layer(layout, moe=False), dense) if dense else NOTHING
        if experts:
            found = _plus(found, _times(self._layer(layout, moe=True), experts))
        return found

    def _layer(self, layout: Layout, *, moe: bool) -> LayerTime:
        key = (*self._shared(layout), moe)
        if key not in self._layers:
            self._layers[key] = self._new_layer(layout, moe=moe)
        return self._layers[key]

    def _new_layer(self, layout: Layout, *, moe: bool) -> LayerTime:
        parts = layer_parts(self.kernels, self.model, layout, moe=moe)
        tensor = traffic.tensor(self.kernels, self.model, layout, parts.pairs)
        context = traffic.context(self.kernels, self.model, layout, parts.attention)
        expert = traffic.expert(self.kernels, self.model, layout) if moe else Seconds()
        passes = parts.total + tensor + context + expert
        tuning = self.hardware.tuning
        floor = tuning.moe_floor if moe else tuning.layer_floor
        host = Seconds(
            max(0.0, floor - passes.forward),
            max(0.0, tuning.floor_backward * floor - passes.backward),
        )
        again = self._recomputed(layout, parts, passes.forward, moe=moe)
        return LayerTime(
            passes + host + Seconds(0.0, again),
            Breakdown(
                matmul=parts.matmul.both,
                attention=parts.attention.both,
                memory=parts.memory.both,
                recompute=again,
                tensor=tensor.both,
                context=context.both,
                expert=expert.both,
                host=host.both,
            ),
        )

    def _recomputed(self, layout: Layout, parts: Parts, forward: float, *, moe: bool) -> float:
        """Seconds of a layer's forward pass that the backward pass repeats."""
        recompute = layout.recompute
        if recompute.granularity is None:
            return 0.0
        if recompute.granularity == "full":
            if recompute.method == "uniform":
                return forward
            most = recompute.num_layers or 1
            chunks = [own for rank in stage_layers(self.model, layout) for own in rank]
            return forward * sum(min(own, most) for own in chunks) / sum(chunks)
        again, norms = 0.0, self.hardware.tuning.norms * parts.memory.forward
        modules = recompute.modules or ("core_attn",)
        if "core_attn" in modules:
            again += parts.attention.forward
        if "layernorm" in modules:
            again += norms
        if ("moe" if moe else "mlp") in modules:
            again += mlp_forward(self.kernels, self.model, layout, moe=moe)
        if moe and "moe_act" in modules:
            again += norms
        return again

    def _shared(self, layout: Layout) -> tuple[object, ...]:
        """What a layer's time depends on."""
        recompute = layout.recompute
        block = stage_layers(self.model, layout) if recompute.method == "block" else ()
        return (
            layout.tp,
            layout.cp,
            layout.ep,
            layout.expert_tp,
            layout.sequence_parallel,
            layout.cp_comm_type,
            layout.micro_batch_size,
            layout.seq_length,
            recompute,
            block,
            layout.overlap.tp_comm,
            layout.overlap.moe_expert_parallel_comm,
            layout.moe,
            layout.fusions,
        )

    def _output(self, layout: Layout) -> LayerTime:
        key = ("output", *self._shared(layout))
        if key not in self._layers:
            parts = output_parts(self.kernels, self.model, layout)
            spent = Breakdown(matmul=parts.matmul.both, memory=parts.memory.both)
            self._layers[key] = LayerTime(parts.total, spent)
        return self._layers[key]

    def _sends(self, layout: Layout) -> float:
        """Messages between stages that stay in view: all, or with overlap the first and last.

        Each chunk's turn costs a handing over in either case.
        """
        if layout.pp == 1:
            return 0.0
        once = traffic.pipeline_send(self.kernels, self.model, layout)
        turns = 2 * layout.num_microbatches * layout.vpp
        seen = 2 * (layout.pp - 1) if layout.vpp > 1 and layout.overlap.p2p else turns
        return seen * once + turns * self.hardware.tuning.handover

    def _end_of_step(self, layout: Layout, passes: Seconds) -> Breakdown:
        padded = self.model.padded_vocab_size(layout.tp)
        telling = telling_stages(self.model, layout)
        counts = [stage_numel(self.model, layout, stage, padded) for stage, _ in telling]
        count = max(counts, key=lambda c: c.total)
        data = traffic.data(self.kernels, layout, count, passes.forward, passes.backward)
        return Breakdown(data=data, optimizer=self._optimizer(layout, count))

    def _optimizer(self, layout: Layout, count: Numel) -> float:
        """Reads the state and writes it back; clears and measures all gradients of the rank."""
        dense, expert = shards(layout)
        if not (layout.distributed_optimizer or layout.fsdp):
            dense = expert = 1
        held = count.dense / dense + count.expert / expert
        width = gradient_width(self.precision)
        state = optimizer_width(self.precision) + step_width(self.precision)
        moved = held * (2 * state + 2 * width + self.kernels.value)
        moved += width * count.total
        return self.kernels.streamed(moved, 100)


def _mean(spent: list[Breakdown], weights: list[float]) -> Breakdown:
    found = Breakdown()
    for each, weight in zip(spent, weights, strict=True):
        found += each * weight
    return found


def _mean_passes(passes: list[Seconds], weights: list[float]) -> Seconds:
    found = Seconds()
    for each, weight in zip(passes, weights, strict=True):
        found += each * weight
    return found


def _plus(first: LayerTime, second: LayerTime) -> LayerTime:
    return LayerTime(first.passes + second.passes, first.spent + second.spent)


def _times(layer: LayerTime, times: int) -> LayerTime:
    return LayerTime(layer.passes * times, layer.spent * times)
