"""The vocabulary: what a quantizer can ask for.

Specs are frozen and hashable. They are validated when they are made, so that a
mistake is reported at the line that made it and not after calibration.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch.fx import GraphModule, Node

from pt2q.errors import SpecError
from pt2q.ir.graph import EdgeOrNode as EdgeOrNode

if TYPE_CHECKING:
    from pt2q.observers.standard import ObserverBase

ObserverCtr: TypeAlias = Callable[..., Any]
"""An observer or fake-quantize class, or what its ``with_args`` returned."""

PER_CHANNEL_SCHEMES = frozenset(
    {
        torch.per_channel_affine,
        torch.per_channel_symmetric,
        torch.per_channel_affine_float_qparams,
    }
)
FLOAT8_DTYPES = frozenset({torch.float8_e4m3fn, torch.float8_e5m2})
CAST_DTYPES = frozenset({torch.float16, torch.bfloat16})
INTEGER_DTYPES = frozenset({torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32})


def _dtype_limits(dtype: torch.dtype) -> tuple[float, float]:
    info = torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
    return info.min, info.max


def _check_range(name: str, dtype: torch.dtype, low: int | None, high: int | None) -> None:
    if dtype not in INTEGER_DTYPES | FLOAT8_DTYPES | CAST_DTYPES:
        raise SpecError(
            f"{name}: dtype {dtype} cannot be quantized to; use one of "
            f"{sorted(str(d) for d in INTEGER_DTYPES | FLOAT8_DTYPES | CAST_DTYPES)}"
        )
    if (low is None) != (high is None):
        raise SpecError(f"{name}: give both quant_min and quant_max or neither, not {low}, {high}")
    if low is None or high is None:
        return
    if low >= high:
        raise SpecError(f"{name}: quant_min must be below quant_max, found [{low}, {high}]")
    least, greatest = _dtype_limits(dtype)
    if low < least or high > greatest:
        raise SpecError(
            f"{name}: [{low}, {high}] does not fit {dtype}, which holds [{least}, {greatest}]"
        )


def _check_axis(name: str, qscheme: torch.qscheme | None, ch_axis: int | None) -> None:
    per_channel = qscheme in PER_CHANNEL_SCHEMES
    if per_channel and ch_axis is None:
        raise SpecError(f"{name}: {qscheme} needs ch_axis, the dimension that has its own scales")
    if not per_channel and ch_axis is not None:
        raise SpecError(f"{name}: ch_axis={ch_axis} needs a per-channel qscheme, found {qscheme}")


class QuantizationSpecBase(ABC):  # noqa: B024 - a closed family, told apart by isinstance
    """Base of the four ways to say how a tensor is quantized."""


@dataclass(frozen=True)
class QuantizationSpec(QuantizationSpecBase):
    """Quantize a tensor with parameters found by an observer.

    Args:
        dtype: what is stored: an integer or float8 dtype, or float16 / bfloat16 for a cast.
        observer_or_fake_quant_ctr: class, or ``Class.with_args(...)``, called with the other
            fields of this spec.
        quant_min, quant_max: the integers used, inside the dtype; None means all of it.
        qscheme: per-tensor or per-channel, affine or symmetric.
        ch_axis: the dimension of a per-channel scheme; given exactly for those.
        is_dynamic: parameters are computed from each input at run time.

    Raises:
        SpecError: the fields contradict each other or the dtype.
    """

    dtype: torch.dtype
    observer_or_fake_quant_ctr: ObserverCtr
    quant_min: int | None = None
    quant_max: int | None = None
    qscheme: torch.qscheme | None = None
    ch_axis: int | None = None
    is_dynamic: bool = False

    def __post_init__(self) -> None:
        _check_range("QuantizationSpec", self.dtype, self.quant_min, self.quant_max)
        _check_axis("QuantizationSpec", self.qscheme, self.ch_axis)


@dataclass(frozen=True)
class FixedQParamsQuantizationSpec(QuantizationSpecBase):
    """Quantize a tensor whose range is known beforehand, as a sigmoid's is.

    Args:
        dtype: an integer or float8 dtype.
        scale: finite and positive.
        zero_point: inside [quant_min, quant_max].
        quant_min, quant_max: the integers used; None means all of the dtype.
        qscheme: a per-tensor scheme.
        is_dynamic: always False in practice; kept for symmetry with the other specs.

    Raises:
        SpecError: the fields contradict each other or the dtype.
    """

    dtype: torch.dtype
    scale: float
    zero_point: int
    quant_min: int | None = None
    quant_max: int | None = None
    qscheme: torch.qscheme | None = None
    is_dynamic: bool = False

    def __post_init__(self) -> None:
        name = "FixedQParamsQuantizationSpec"
        _check_range(name, self.dtype, self.quant_min, self.quant_max)
        _check_axis(name, self.qscheme, None)
        if not 0 < self.scale < float("inf"):
            raise SpecError(f"{name}: scale must be finite and positive, found {self.scale}")
        least, greatest = _dtype_limits(self.dtype)
        low = least if self.quant_min is None else self.quant_min
        high = greatest if self.quant_max is None else self.quant_max
        if not low <= self.zero_point <= high:
            raise SpecError(f"{name}: zero_point {self.zero_point} is outside [{low}, {high}]")


@dataclass(frozen=True)
class SharedQuantizationSpec(QuantizationSpecBase):
    """Use the same parameters as another tensor, named by its edge or node.

    The reference may point at an edge or node anywhere in the graph, annotated before
    or after this one, and may itself be shared; see `pt2q.spec.plan`.
    """

    edge_or_node: EdgeOrNode


@dataclass(frozen=True)
class DerivedQuantizationSpec(QuantizationSpecBase):
    """Compute the parameters from those of other tensors, as an int32 bias does.

    Args:
        derived_from: the tensors whose observers are handed to ``derive_qparams_fn``.
        derive_qparams_fn: takes their observers, in order; returns (scale, zero_point).
        dtype, quant_min, quant_max, qscheme, ch_axis, is_dynamic: as in `QuantizationSpec`.

    Raises:
        SpecError: the fields contradict each other or the dtype.
    """

    derived_from: tuple[EdgeOrNode, ...]
    derive_qparams_fn: Callable[[list[ObserverBase]], tuple[torch.Tensor, torch.Tensor]]
    dtype: torch.dtype
    quant_min: int | None = None
    quant_max: int | None = None
    qscheme: torch.qscheme | None = None
    ch_axis: int | None = None
    is_dynamic: bool = False

    def __post_init__(self) -> None:
        # A list is what quantizers pass; a tuple is what can be hashed.
        object.__setattr__(self, "derived_from", tuple(self.derived_from))
        _check_range("DerivedQuantizationSpec", self.dtype, self.quant_min, self.quant_max)
        _check_axis("DerivedQuantizationSpec", self.qscheme, self.ch_axis)
        if not self.derived_from:
            raise SpecError("DerivedQuantizationSpec: derived_from names no tensor")


@dataclass
class QuantizationAnnotation:
    """How a node's inputs and output are quantized; lives in ``node.meta``.

    Args:
        input_qspec_map: a spec for each input node to be quantized on its edge to this node;
            None, or no entry, leaves the edge in float.
        output_qspec: the spec of the node's output, or None.
        allow_implicit_sharing: an edge of this node, or its output, whose spec equals the one
            already on the same value uses that one's parameters. False gives each its own.
    """

    input_qspec_map: dict[Node, QuantizationSpecBase | None] = field(default_factory=dict)
    output_qspec: QuantizationSpecBase | None = None
    allow_implicit_sharing: bool = True
    _annotated: bool = False


QUANT_ANNOTATION_KEY = "quantization_annotation"


class Quantizer(ABC):
    """What a backend implements to say how it wants a model quantized."""

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Rewrite the float model before annotation (a decomposition, say).

        Args:
            model: the exported model, already copied: it may be changed in place.

        Returns:
            The model to annotate; it must compute the same function.
        """
        return model

    @abstractmethod
    def annotate(self, model: GraphModule) -> GraphModule:
        """Put a `QuantizationAnnotation` at ``node.meta["quantization_annotation"]``.

        Args:
            model: the model after `transform_for_annotation`.

        Returns:
            The same model.
        """

    @abstractmethod
    def validate(self, model: GraphModule) -> None:
        """Raise if the annotated model cannot run on the backend.

        Args:
            model: the annotated model.
        """

    def prepare_obs_or_fq_callback(
        self,
        model: GraphModule,
        edge_or_node_to_obs_or_fq: dict[EdgeOrNode, Any],
    ) -> None:
        """Look at, or change, the observers before they are inserted.

        Args:
            model: the annotated model.
            edge_or_node_to_obs_or_fq: the observer of every quantized tensor. Putting another
                observer in replaces it for that tensor.
        """
        return None
