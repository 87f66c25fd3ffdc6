"""Seconds of single kernels on one type of GPU: matrix products, attention, and what moves bytes.

Matrices run at the best shapes' share of the tensor cores' peak, less what filling a tile's
pipeline and an uneven last wave of tiles cost; attention at the rate of its kernels; all else moves
bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from toolkit.plan.activations import BYTES, tokens_per_rank
from toolkit.plan.hardware import (
    ATTENTION_BACKWARD,
    CAST_BYTES,
    SCORE_PASSES,
    TILE,
    Hardware,
)
from toolkit.plan.shape import Layout, ModelShape, Precision


@dataclass(frozen=True)
class Seconds:
    """Of a forward and of a backward pass."""

    forward: float = 0.0
    backward: float = 0.0

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(self.forward + other.forward, self.backward + other.backward)

    def __mul__(self, times: float) -> Seconds:
        return Seconds(self.forward * times, self.backward * times)

    @property
    def both(self) -> float:
        """The sum."""
        return self.forward + self.backward


@dataclass(frozen=True)
class Linear:
    """Seconds of a linear layer's three matrix products."""

    output: float
    of_input: float
    of_weights: float

    @property
    def passes(self) -> Seconds:
        """Forward, and backward."""
        return Seconds(self.output, self.of_input + self.of_weights)


@dataclass(frozen=True)
class Parts:
    """A layer's seconds, by what they are spent on."""

    matmul: Seconds = Seconds()
    attention: Seconds = Seconds()
    memory: Seconds = Seconds()
    """Kernels that only move bytes: norms, activations, casts, the adding up of gradients."""
    pairs: tuple[tuple[Linear, Linear], ...] = ()
    """Column- and row-parallel layers that communicate: attention's, and a dense MLP's."""

    @property
    def total(self) -> Seconds:
        """All of it."""
        return self.matmul + self.attention + self.memory


class Kernels:
    """Kernel times on one type of GPU, in one precision."""

    def __init__(self, hardware: Hardware, precision: Precision) -> None:
        self.hardware = hardware
        self.precision = precision
        self.wide = "fp32" if precision.weights == "fp32" else "bf16"
        low = "fp4" if precision.fp4 else "fp8" if precision.fp8 else None
        self.format = hardware.gpu.format_of(low) if low else self.wide
        self.value = BYTES[precision.weights]
        self._hbm = hardware.gpu.hbm

    def matmul(self, rows: float, inner: float, columns: float, *, low: bool = True) -> float:
        """Seconds of ``rows x inner`` times ``inner x columns``; ``low``: in FP8 where asked."""
        gpu, tuning = self.hardware.gpu, self.hardware.tuning
        number_format = self.format if low else self.wide
        rate = gpu.peak[number_format] * gpu.matmul[number_format] * tuning.sustained
        filling = 1 + tuning.fill_of(number_format) / max(inner, 1)
        tiles = math.ceil(rows / TILE) * math.ceil(columns / TILE)
        waves = tiles / gpu.sms
        uneven = 1 + tuning.last_wave * (min(math.ceil(waves) / waves, 4.0) - 1)
        width = self.value if number_format == self.wide else 1
        moved = width * (rows * inner + inner * columns) + self.value * rows * columns
        seconds = 2 * rows * inner * columns / rate * filling * uneven
        return max(seconds, moved / self._hbm) + tuning.launch

    def linear(
        self,
        tokens: float,
        inputs: float,
        outputs: float,
        *,
        low: bool = True,
        chunks: tuple[int, int] = (1, 1),
    ) -> Linear:
        """A linear layer: its output, and the gradients of its input and of its weights.

        ``chunks``: in how many parts of the tokens the output, and the input's gradient, are made,
        so that each part's communication runs beside the next one.
        """
        ahead, back = chunks
        return Linear(
            ahead * self.matmul(tokens / ahead, inputs, outputs, low=low),
            back * self.matmul(tokens / back, outputs, inputs, low=low),
            self.matmul(inputs, tokens, outputs, low=low),
        )

    def attention(self, model: ModelShape, layout: Layout) -> Seconds:
        """Causal attention over rows of ``seq_length``, cut by CP in balanced parts."""
        if layout.fusions.attention_backend == "unfused":
            return self._unfused_attention(model, layout)
        gpu, tuning = self.hardware.gpu, self.hardware.tuning
        chunk = layout.seq_length / (2 * layout.cp if layout.cp > 1 else 1)
        share = chunk / (chunk + tuning.attention_short)
        share *= 1.0 if model.kv_channels >= TILE else tuning.attention_head64
        share *= tuning.sustained
        if self.wide == "fp32":  # no fused kernel takes it: products of matrices, at their rate
            share *= gpu.peak["fp32"] / gpu.peak["bf16"]
        query = model.num_attention_heads * model.kv_channels / layout.tp
        operations = 2 * tokens_per_rank(layout) * layout.seq_length * query
        return Seconds(
            operations / (gpu.attention[0] * share),
            ATTENTION_BACKWARD * operations / (gpu.attention[1] * share),
        )

    def _unfused_attention(self, model: ModelShape, layout: Layout) -> Seconds:
        """Two matrix products of whole rows, and kernels that move the scores between them."""
        tokens, row = tokens_per_rank(layout), layout.seq_length
        heads, size = model.num_attention_heads / layout.tp, model.kv_channels
        product = heads * layout.micro_batch_size * self.matmul(row, size, row, low=False)
        matrix = self.value * heads * row * tokens
        ahead, back = (self.streamed(passes * matrix, passes) for passes in SCORE_PASSES)
        return Seconds(2 * product + ahead, 4 * product + back)

    def streamed(self, moved: float, kernels: int) -> float:
        """Seconds in which kernels move bytes."""
        tuning = self.hardware.tuning
        return moved / self._hbm + kernels * tuning.launch

    @property
    def cast(self) -> float:
        """Bytes moved to give one element its low format; 0 where they run in it already."""
        return 0.0 if self.format == self.wide else float(CAST_BYTES[self.precision.fp8_recipe])
