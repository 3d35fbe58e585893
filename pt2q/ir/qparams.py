"""The parameters of quantize and dequantize operators: read off a node, or written as one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from pt2q.ir import ops
from pt2q.ir.emit import Emitter
from pt2q.ir.graph import fake_like, value_of
from pt2q.ir.torch_private import schema_of

_qd = ops.qd
PER_TENSOR = (_qd.quantize_per_tensor.default, _qd.dequantize_per_tensor.default)
PER_TENSOR_COMPUTED = (_qd.quantize_per_tensor.tensor, _qd.dequantize_per_tensor.tensor)
PER_CHANNEL = (_qd.quantize_per_channel.default, _qd.dequantize_per_channel.default)
PER_TOKEN = (_qd.quantize_per_token.default, _qd.dequantize_per_token.default)
PER_GROUP = (_qd.quantize_per_channel_group.default, _qd.dequantize_per_channel_group.default)


@dataclass(frozen=True, eq=False)
class QParams:
    """How integers stand for real numbers: ``(q - zero_point) * scale``.

    Args:
        scale: a number; a tensor, ``[C]`` along ``axis`` or ``[C, G]`` with a ``group``; a node
            that reads or computes one of these.
        zero_point: likewise, in integers.
        quant_min, quant_max: the integers in use.
        dtype: what they are stored as.
        axis: the dimension of per-channel parameters.
        group: the number of neighbours along the last dimension that share a scale.
        per_token: whether each slice along the last dimension has parameters of its own.
    """

    scale: float | Tensor | Node
    zero_point: int | Tensor | Node
    quant_min: int
    quant_max: int
    dtype: torch.dtype
    axis: int | None = None
    group: int | None = None
    per_token: bool = False

    @property
    def operators(self) -> tuple[ops.Target, ops.Target]:
        """The quantize and the dequantize that take such parameters."""
        if self.group is not None:
            return PER_GROUP
        if self.per_token:
            return PER_TOKEN
        if self.axis is not None:
            return PER_CHANNEL
        return PER_TENSOR_COMPUTED if isinstance(self.scale, Node) else PER_TENSOR

    @property
    def is_static(self) -> bool:
        """Whether scale and zero point are known now."""
        return not isinstance(self.scale, Node) and not isinstance(self.zero_point, Node)

    @property
    def known(self) -> tuple[float | Tensor, int | Tensor]:
        """Scale and zero point of static parameters."""
        scale, zero_point = self.scale, self.zero_point
        assert not isinstance(scale, Node) and not isinstance(zero_point, Node)
        return scale, zero_point

    @property
    def is_per_tensor(self) -> bool:
        """Whether scale and zero point are one known number each."""
        return isinstance(self.scale, float) and isinstance(self.zero_point, int)

    @property
    def steps(self) -> int:
        """The largest ``|q - zero_point|``."""
        zero = self.zero_point
        if isinstance(zero, Node):
            return self.quant_max - self.quant_min
        least, most = (zero, zero) if isinstance(zero, int) else map(int, zero.aminmax())
        return max(self.quant_max - least, most - self.quant_min)

    def same(self, other: QParams) -> bool:
        """Whether equal integers stand for equal numbers, per tensor."""
        return self.is_per_tensor and other.is_per_tensor and self._key() == other._key()

    def _key(self) -> tuple[object, ...]:
        return self.scale, self.zero_point, self.quant_min, self.quant_max, self.dtype

    def along(self, value: Tensor, rank: int) -> Tensor:
        """A per-channel vector shaped to broadcast with a tensor of that rank."""
        if self.axis is None or value.dim() == 0:
            return value
        shape = [1] * rank
        shape[self.axis] = -1
        return value.reshape(shape)


# ------------------------------------------------------------------ reading

FIELDS = {
    "scale": "scale",
    "scales": "scale",
    "zero_point": "zero_point",
    "zero_points": "zero_point",
    "quant_min": "quant_min",
    "quant_max": "quant_max",
    "dtype": "dtype",
    "axis": "axis",
    "group_size": "group",
}
"""Which field of `QParams` the operators have under which name."""


def read_qparams(node: Node, resolve: Callable[[Node], Any] | None = None) -> QParams:
    """The parameters of a quantize or dequantize.

    Args:
        node: the call.
        resolve: what to put for a node among the parameters, such as the constant that it reads;
            None leaves nodes as they are.
    """
    found: dict[str, Any] = {}
    for name in _argument_names(node.target):
        value = ops.argument(node, name)
        found[FIELDS[name]] = resolve(value) if resolve and isinstance(value, Node) else value
    if found["zero_point"] is None:  # the operator lets it out where it is zero
        found["zero_point"] = 0
    return QParams(**found, per_token=node.target in PER_TOKEN)


def qparams_key(node: Node, identity: Callable[[Node], Any]) -> tuple[Any, ...]:
    """Equal for calls of one operator with equal parameters.

    Args:
        node: a quantize or dequantize.
        identity: what stands for a node among the parameters; hashable.
    """
    params = read_qparams(node, identity)
    return node.target, *(getattr(params, field.name) for field in fields(params))


@lru_cache
def _argument_names(target: ops.Target) -> tuple[str, ...]:
    return tuple(a.name for a in schema_of(target).arguments if a.name in FIELDS)


# ------------------------------------------------------------------ writing


def write_quantize(emit: Emitter, value: Node, params: QParams) -> Node:
    """Write the quantize of a value.

    Args:
        emit: makes the node.
        value: real numbers.
        params: with nodes for what is not one number.
    """
    target, _ = params.operators
    stored = fake_like(value_of(value), params.dtype)
    return emit.call_giving(stored, target, value, *_arguments(target, params, None))


def write_dequantize(emit: Emitter, integers: Node, params: QParams, real: Any) -> Node:
    """Write the dequantize of integers.

    Args:
        emit: makes the node.
        integers: what `write_quantize` gives, or a constant.
        params: with nodes for what is not one number.
        real: the fake value of the result; its dtype is what the operator is told to give.
    """
    _, target = params.operators
    dtype = real.dtype if isinstance(real, Tensor) else torch.float32
    arguments = _arguments(target, params, dtype)
    # An operator per group or token must be told; the others give float32 unless told.
    told = {} if dtype == torch.float32 or _has_output_dtype(target) else {"out_dtype": dtype}
    return emit.call_giving(real, target, integers, *arguments, **told)


def _arguments(target: ops.Target, params: QParams, out: torch.dtype | None) -> list[Any]:
    found = [getattr(params, FIELDS[name]) for name in _argument_names(target)]
    return [*found, out] if out is not None and _has_output_dtype(target) else found


@lru_cache
def _has_output_dtype(target: ops.Target) -> bool:
    return any(a.name == "output_dtype" for a in schema_of(target).arguments)


def quantized_nodes(model: torch.nn.Module) -> list[Node]:
    """The quantizes and dequantizes in every graph of a module, those of other libraries too.

    Args:
        model: an exported module; of a program, its ``graph_module``.
    """
    graphs = [m.graph for m in model.modules() if isinstance(m, GraphModule)]
    known = ops.QUANTIZE | ops.DEQUANTIZE
    return [n for g in graphs for n in g.nodes if ops.is_op(n, known) or ops.quantizes_elsewhere(n)]
