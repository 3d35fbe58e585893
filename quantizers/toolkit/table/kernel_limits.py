"""What a kernel takes, as data: types, ranges, granularity, axes, ranks and scale floors.

A backend's rows name these limits; its configurations and every match are checked against them,
weights are fitted to them, and the tables of the documentation are made from them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from pt2q.quantizers.toolkit.config import Mode, QuantizationConfig, has_channels
from pt2q.quantizers.toolkit.reasons import KERNEL_NEEDS, KERNEL_TAKES, Reason
from pt2q.quantizers.toolkit.scales_of_weights import per_channel_at, per_tensor
from pt2q.quantizers.toolkit.usual_observers import activation_constructor
from pt2q.spec import (
    Granularity,
    PerAxis,
    PerGroup,
    PerTensor,
    PerToken,
    QuantizationSpec,
    granularity_of,
)

ROLES = {
    "input_activation": "activations",
    "weight": "weights",
    "output_activation": "results",
}
"""The roles of a `QuantizationConfig` that kernels limit, and what messages call them."""

ANY_RANK = (0, 64)
"""As many dimensions as a tensor can have."""
SCALES = {
    PerTensor: "one scale",
    PerAxis: "a scale per channel",
    PerGroup: "a scale per group",
    PerToken: "a scale per token",
}
"""Granularities in words."""


@dataclass(frozen=True)
class StoredAs:
    """A form in which a kernel reads values.

    Args:
        dtype: of the tensor.
        low, high: the widest integers it may hold; None for types that hold no integers.
        bits: of each value in the runtime's own memory.
        granularities: how much may share a scale.
    """

    dtype: torch.dtype
    low: int | None = None
    high: int | None = None
    bits: int = 8
    granularities: tuple[type[Granularity], ...] = (PerTensor,)

    def scaled(self, *granularities: type[Granularity]) -> StoredAs:
        """The same form with other parts that may share a scale."""
        return replace(self, granularities=granularities)

    def holds(self, spec: QuantizationSpec) -> bool:
        """Whether values quantized by a spec are in this form."""
        if spec.dtype is not self.dtype or (self.low is not None and bits_of(spec) != self.bits):
            return False
        if not isinstance(granularity_of(spec), self.granularities):
            return False
        if self.low is None or spec.quant_min is None or self.high is None:
            return True
        return self.low <= spec.quant_min and (spec.quant_max or 0) <= self.high

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        name = name if self.bits >= 8 else f"int{self.bits}"
        name = name if self.low is None else f"{name} [{self.low}, {self.high}]"
        return f"{name} with {' or '.join(SCALES[kind] for kind in self.granularities)}"


INT8 = StoredAs(torch.int8, -128, 127)
UINT8 = StoredAs(torch.uint8, 0, 255)
INT16 = StoredAs(torch.int16, -32768, 32767, bits=16)
INT4 = StoredAs(torch.int8, -8, 7, bits=4)


def bits_of(spec: QuantizationSpec) -> int:
    """The bits that a runtime stores a value in: 4 for channels of exactly [-8, 7] in int8."""
    four = (spec.dtype, spec.quant_min, spec.quant_max) == (torch.int8, INT4.low, INT4.high)
    return 4 if four and has_channels(spec) else spec.dtype.itemsize * 8


@dataclass(frozen=True, kw_only=True)
class TensorLimits:
    """What a kernel takes for the tensor in one role.

    Args:
        stored: the forms it reads or writes.
        axis: where the channels of weights lie.
        symmetric: zero points have to be 0.
        min_scale: the smallest scale that the runtime computes with.
    """

    stored: tuple[StoredAs, ...]
    axis: int = 0
    symmetric: bool = False
    min_scale: float = 0.0

    def takes(self, spec: QuantizationSpec) -> bool:
        """Whether the kernel takes what a spec asks for."""
        return self._zero_point_fits(spec) and any(form.holds(spec) for form in self.stored)

    @property
    def takes_channels(self) -> bool:
        """Whether it takes more than one scale for a tensor."""
        return any(PerAxis in form.granularities for form in self.stored)

    def _zero_point_fits(self, spec: QuantizationSpec) -> bool:
        if not self.symmetric:
            return True
        low, high = spec.quant_min, spec.quant_max
        around_0 = low is None or high is None or low < 0 < high
        return around_0 and spec.qscheme in (
            torch.per_tensor_symmetric,
            torch.per_channel_symmetric,
        )

    def __str__(self) -> str:
        zero = ", zero point 0" if self.symmetric else ""
        return f"{', '.join(map(str, self.stored))}{zero}"


@dataclass(frozen=True, kw_only=True)
class KernelLimits:
    """What the kernel behind a row takes, by the role of each tensor.

    Args:
        names: what the runtime calls it, or each of several; none where the runtime computes in
            float or moves values.
        activation: of its inputs.
        weight: None for an operator without one.
        result: None where it gives float.
        dimensions: the fewest and the most that an activation may have.
        float_activation: it also takes activations in float, with a quantized weight.
    """

    names: tuple[str, ...] = ()
    activation: TensorLimits
    weight: TensorLimits | None = None
    result: TensorLimits | None = None
    dimensions: tuple[int, int] = ANY_RANK
    float_activation: bool = False

    def of_role(self, role: str) -> TensorLimits | None:
        """The limits for a role of a `QuantizationConfig`; None where the kernel has none."""
        return {
            "input_activation": self.activation,
            "weight": self.weight,
            "output_activation": self.result,
        }.get(role)

    def fitted(self, config: QuantizationConfig) -> QuantizationConfig:
        """The configuration with its weight's channels where this kernel has them.

        A range that is measured for each token is measured once where the kernel takes one scale.
        """
        config = replace(config, input_activation=self._of_one_scale(config.input_activation))
        if self.weight is None or config.weight is None:
            return config
        if not self.weight.takes_channels:
            return replace(config, weight=per_tensor(config.weight))
        return replace(config, weight=per_channel_at(config.weight, self.weight.axis))

    def _of_one_scale(self, spec: QuantizationSpec | None) -> QuantizationSpec | None:
        if spec is None or not isinstance(granularity_of(spec), PerToken):
            return spec
        if any(PerToken in form.granularities for form in self.activation.stored):
            return spec
        floor = self.activation.min_scale
        constructor = activation_constructor(Mode.DYNAMIC, min_scale=floor, per_token=False)
        return replace(spec, observer_or_fake_quant_ctr=constructor)

    def why_not(self, config: QuantizationConfig) -> Reason | None:
        """Why the kernel cannot take a configuration fitted to it; None if it can."""
        if config.input_activation is None and not self.float_activation:
            return KERNEL_NEEDS.filled(role=ROLES["input_activation"])
        if config.weight is None and self.weight is not None:
            return KERNEL_NEEDS.filled(role=ROLES["weight"])
        for role, words in ROLES.items():
            spec, limits = getattr(config, role), self.of_role(role)
            if spec is not None and limits is not None and not limits.takes(spec):
                return KERNEL_TAKES.filled(role=words, takes=limits, found=spec_words(spec))
        if config.bias is not None and not config.bias.stays_in_float:
            found = spec_words(config.bias)
            return KERNEL_TAKES.filled(role="biases", takes="float", found=found)
        return None


class Fits:
    """What kernels make of configurations, asked once for each pair.

    A table has a few kernels and a user a few configurations; a graph has thousands of calls.
    """

    def __init__(self) -> None:
        self._fitted: dict[tuple[int, int], tuple[Any, QuantizationConfig]] = {}
        self._reasons: dict[tuple[int, int], tuple[Any, Reason | None]] = {}

    def fitted(self, kernel: KernelLimits, config: QuantizationConfig) -> QuantizationConfig:
        """See `KernelLimits.fitted`: the same object for the same two."""
        key = id(kernel), id(config)
        if key not in self._fitted:  # both are kept, so that no other has their address
            self._fitted[key] = (kernel, config), kernel.fitted(config)
        return self._fitted[key][1]

    def why_not(self, kernel: KernelLimits, config: QuantizationConfig) -> Reason | None:
        """See `KernelLimits.why_not`."""
        key = id(kernel), id(config)
        if key not in self._reasons:
            self._reasons[key] = (kernel, config), kernel.why_not(config)
        return self._reasons[key][1]


def spec_words(spec: QuantizationSpec) -> str:
    """A spec in the words of `TensorLimits`: ``uint8 [0, 255] with one scale, affine``."""
    dtype = str(spec.dtype).removeprefix("torch.")
    numbers = "" if spec.quant_min is None else f" [{spec.quant_min}, {spec.quant_max}]"
    found = granularity_of(spec)
    scales = SCALES.get(type(found), str(found))
    scheme = str(spec.qscheme).rpartition("_")[2]
    return f"{dtype}{numbers} with {scales}, {scheme}"
