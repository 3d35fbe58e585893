"""Fake quantization of weights in groups, as 4-bit runtimes want them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pt2q.numerics.qparams import DEFAULT_EPS
from pt2q.numerics.straight_through import Span, fake_quantize_groups
from pt2q.observers.fake_quantizers.fake_quantizer import FakeQuantize
from pt2q.observers.min_max.per_group import PerGroupMinMaxObserver
from pt2q.spec.granularity import Granularity, PerGroup


class GroupFakeQuantize(FakeQuantize):
    """Fake-quantize weights [rows, columns] with parameters per group of neighbours in a row.

    The parameters are those of the weight as it is, at every step: nothing is averaged.

    Args:
        group_size: how many neighbours share parameters.
        dtype, quant_min, quant_max: [-8, 7] of int8 are 4 bits.
        qscheme: symmetric or affine, per channel.
        eps: the smallest scale.
        scale_dtype: scales are rounded to it: bfloat16 is what 4-bit kernels store.
        **_: what specs pass to every constructor (``ch_axis``, ``is_dynamic``).
    """

    def __init__(
        self,
        group_size: int = 32,
        dtype: torch.dtype = torch.int8,
        quant_min: int = -8,
        quant_max: int = 7,
        qscheme: torch.qscheme = torch.per_channel_symmetric,
        eps: float = DEFAULT_EPS,
        scale_dtype: torch.dtype = torch.float32,
        **_: Any,
    ) -> None:
        super().__init__(
            PerGroupMinMaxObserver,
            quant_min,
            quant_max,
            group_size=group_size,
            dtype=dtype,
            qscheme=qscheme,
            eps=eps,
            scale_dtype=scale_dtype,
        )
        self.group_size, self.scale_dtype = group_size, scale_dtype

    @classmethod
    def granularity_for(
        cls, observer: Any = None, *, group_size: int = 32, **arguments: Any
    ) -> Granularity:
        """The granularity of a fake quantizer made with these arguments."""
        return PerGroup(group_size)

    def _observe(self, x: Tensor) -> Span | None:
        self.activation_post_process.reset()
        return super()._observe(x)

    def _round(self, x: Tensor, ends: Span | None = None) -> Tensor:
        low, high = self.quant_min, self.quant_max
        return fake_quantize_groups(x, self.scale, self.zero_point, low, high, self.group_size)
