"""Laws of quantization parameters: they are sound, and a dequantize has those of its quantize."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from pt2q.ir import ops
from pt2q.ir.graph import find_attribute
from pt2q.ir.qparams import QParams, read_qparams
from pt2q.ir.verify.laws import Found, law

COMPARED = ("scale", "zero_point", "quant_min", "quant_max", "dtype", "axis", "group")


def _parameters_of(model: GraphModule, node: Node) -> QParams:
    """The parameters of a quantize or dequantize, constants as tensors."""

    def resolve(value: Node) -> Any:
        if value.op == "get_attr":
            return find_attribute(model, str(value.target))
        # An element of several results is told by whose it is and which.
        return value.args if value.target is ops.GETITEM else value

    return read_qparams(node, resolve)


@law("parameters", always=True)
def parameters(model: GraphModule) -> Found:
    """Scales are finite and positive, zero points in the range, the range in the dtype."""
    for node in model.graph.nodes:
        if ops.is_op(node, ops.QUANTIZE | ops.DEQUANTIZE):
            for text in _faults(node, _parameters_of(model, node)):
                yield node.name, text


def _faults(node: Node, found: QParams) -> Iterator[str]:
    low, high, dtype = found.quant_min, found.quant_max, found.dtype
    if isinstance(low, Node) or isinstance(high, Node):
        return
    info = torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
    if not info.min <= low < high <= info.max:
        yield f"its range [{low}, {high}] is empty or outside of {dtype}"
    if _is_known(found.scale):
        yield from _scale_faults(torch.as_tensor(found.scale, dtype=torch.float64))
    if _is_known(found.zero_point):
        yield from _zero_point_faults(torch.as_tensor(found.zero_point), low, high)
    yield from _size_faults(node, found)


def _is_known(value: Any) -> bool:
    return isinstance(value, Tensor | int | float)


def _scale_faults(scale: Tensor) -> Iterator[str]:
    bad = ~torch.isfinite(scale) | (scale <= 0)
    if bool(bad.any()):
        yield f"its scale must be finite and positive, found {scale[bad].flatten()[:4].tolist()}"


def _zero_point_faults(zero_point: Tensor, low: int, high: int) -> Iterator[str]:
    if zero_point.is_floating_point():
        if not bool(torch.isfinite(zero_point).all()):
            yield "its zero point is not finite"
        return
    bad = (zero_point < low) | (zero_point > high)
    if bool(bad.any()):
        found = zero_point[bad].flatten()[:4].tolist()
        yield f"its zero point must be in [{low}, {high}], found {found}"


def _size_faults(node: Node, found: QParams) -> Iterator[str]:
    """One scale per channel of the dimension that has its own."""
    axis, scale, value = found.axis, found.scale, node.meta.get("val")
    if axis is None or not isinstance(scale, Tensor) or not isinstance(value, Tensor):
        return
    if not -value.dim() <= axis < value.dim():
        yield f"its axis {axis} is not one of {value.dim()} dimensions"
    elif isinstance(value.shape[axis], int) and scale.shape != (value.shape[axis],):
        yield f"{tuple(scale.shape)} scales for {value.shape[axis]} channels"


@law("mirror", always=True)
def mirror(model: GraphModule) -> Found:
    """A dequantize has the parameters of its quantize; what is stored fits its range."""
    for node in model.graph.nodes:
        if not ops.is_op(node, ops.DEQUANTIZE):
            continue
        source = _source(node)
        if ops.is_op(source, ops.QUANTIZE):
            one, other = _parameters_of(model, source), _parameters_of(model, node)
            for text in _differences(one, other, source.name):
                yield node.name, text
        elif source.op == "get_attr":
            yield from _stored_faults(model, node, source)


def _differences(one: QParams, other: QParams, name: str) -> Iterator[str]:
    for field in COMPARED:
        mine, theirs = getattr(other, field), getattr(one, field)
        if not _same(mine, theirs):
            yield f"{field} is {_short(mine)}, that of {name} is {_short(theirs)}"


def _source(node: Node) -> Node:
    """What made the integers, seen through operators that only move them."""
    at: Any = ops.data_input(node)
    while ops.is_op(at, ops.MOVES) and read_qparams(node).axis is None:
        at = ops.data_input(at)
    assert isinstance(at, Node)
    return at


def _stored_faults(model: GraphModule, node: Node, source: Node) -> Found:
    stored, found = find_attribute(model, str(source.target)), _parameters_of(model, node)
    if not isinstance(stored, Tensor) or not stored.numel():
        return
    if stored.dtype != found.dtype:
        yield node.name, f"{source.target} holds {stored.dtype}, it reads {found.dtype}"
        return
    if stored.dtype.is_floating_point or isinstance(found.quant_min, Node):
        return
    low, high = int(stored.min()), int(stored.max())
    if low < found.quant_min or high > found.quant_max:
        limits = f"[{found.quant_min}, {found.quant_max}]"
        yield node.name, f"{source.target} holds [{low}, {high}], its range is {limits}"


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, Node) or isinstance(other, Node):
        return one is other
    return bool(one == other)


def _short(value: Any) -> str:
    if isinstance(value, Tensor) and value.numel() > 4:
        return f"a tensor of {tuple(value.shape)}"
    return str(value)
