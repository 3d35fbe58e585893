"""`QuantizationConfig`: the specs of the four roles that a tensor can have at an operator."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from pt2q.spec import PerAxis, PerGroup, PerToken, QuantizationSpec, granularity_of
from pt2q.spec.granularity import Granularity


class Mode(Enum):
    """When the parameters of activations are found.

    STATIC: by calibration; also where activations stay in float.
    QAT: in training, where batch norms are still in the graph.
    DYNAMIC: at run time, from each input.
    """

    STATIC = "static"
    QAT = "training"
    DYNAMIC = "dynamic"


@dataclass(frozen=True)
class QuantizationConfig:
    """How an operator is quantized, by the role of each tensor.

    Args:
        input_activation: what is computed from the model's input, on its way into the operator.
        output_activation: the operator's result.
        weight: a constant that the operator multiplies with.
        bias: a constant that the operator adds; None leaves it to the backend.
        is_qat: the specs make fake-quantizers, and batch norms are still in the graph.
    """

    input_activation: QuantizationSpec | None
    output_activation: QuantizationSpec | None
    weight: QuantizationSpec | None
    bias: QuantizationSpec | None = None
    is_qat: bool = False

    @property
    def is_dynamic(self) -> bool:
        """Whether the parameters of inputs are computed from each input at run time."""
        return self.input_activation is not None and self.input_activation.is_dynamic

    @property
    def mode(self) -> Mode:
        """When the parameters of its activations are found."""
        if self.is_dynamic:
            return Mode.DYNAMIC
        return Mode.QAT if self.is_qat else Mode.STATIC

    @property
    def summary(self) -> str:
        """Its mode, and what is stored, in words."""
        roles = {
            "inputs": self.input_activation,
            "outputs": self.output_activation,
            "weights": self.weight,
            "biases": self.bias,
        }
        stored = [f"{name} {_stored(spec)}" for name, spec in roles.items() if spec is not None]
        return ", ".join([self.mode.value, *stored])

    @property
    def is_per_channel(self) -> bool:
        """Whether weights have a scale per output channel."""
        return self.weight is not None and has_channels(self.weight)


def _stored(spec: QuantizationSpec) -> str:
    dtype = str(spec.dtype).removeprefix("torch.")
    limits = f" [{spec.quant_min}, {spec.quant_max}]" if spec.quant_min is not None else ""
    return f"{dtype}{limits} {words_for_scales(granularity_of(spec))}"


def words_for_scales(granularity: Granularity) -> str:
    """What shares a scale, in a few words."""
    if isinstance(granularity, PerGroup):
        return f"in groups of {granularity.group_size}"
    if isinstance(granularity, PerAxis):
        return "per channel"
    return "per token" if isinstance(granularity, PerToken) else "per tensor"


def has_channels(spec: QuantizationSpec) -> bool:
    """Whether a spec asks for scales along an axis, or for groups in it, and not for one."""
    return isinstance(granularity_of(spec), PerAxis | PerGroup)
