"""Operators in the words that XNNPACK knows.

What the delegate does not take ends a blob: its operands are written out, a portable kernel runs,
and the next blob reads them in. Some of these operators are others in disguise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.fx import GraphModule, Node

from pt2q.ir import ops
from pt2q.ir.emit import Emitter, has_fake_values
from pt2q.ir.graph import is_constant, value_of
from pt2q.ir.storage import StorageMap

PASS_NAME = "pt2q.executorch_forms"
MOST_COPIES = 8
"""A tensor is repeated by joining copies of it up to this number."""
LEAST_ROWS, WIDEST_ROW = 8, 256
"""Norms of single or of long rows are faster in a portable kernel, though it ends a blob."""
_ARITHMETIC = (
    ops.aten.add.Tensor,
    ops.aten.sub.Tensor,
    ops.aten.mul.Tensor,
    ops.aten.div.Tensor,
)
Form = Callable[[Emitter], Node | None]


def delegable(model: GraphModule) -> list[Node]:
    """The operators on float tensors of known sizes that may have a form that XNNPACK runs.

    Args:
        model: a converted module.
    """
    found = [n for n in model.graph.nodes if n.target in FORMS and _is_plain(n) and _is_meant(n)]
    if not found:
        return []
    storage = StorageMap.of(model.graph)
    return [node for node in found if not storage.is_mutated(node)]


def delegable_forms(model: GraphModule) -> bool:
    """Write operators as others that XNNPACK runs.

    A split is slices, a pick is a slice, an expansion copies that are joined, a mean over the last
    dimension a product with a row of equal numbers.

    Args:
        model: a converted module; changed in place.

    Returns:
        Whether there were any.
    """
    changed = False
    for node in delegable(model):
        found = FORMS[node.target](Emitter(model, PASS_NAME).before(node))
        if found is not None:
            node.replace_all_uses_with(found)
            changed = True
    if changed:
        model.graph.eliminate_dead_code()
        model.recompile()
    return changed


def _is_plain(node: Node) -> bool:
    if not node.all_input_nodes or not has_fake_values(node):
        return False
    values = [value_of(source) for source in node.all_input_nodes]
    sizes = [size for value in values for size in value.shape]
    return all(v.dtype is torch.float32 for v in values) and all(type(s) is int for s in sizes)


def _is_meant(node: Node) -> bool:
    """Whether it is no arithmetic but that with an integer."""
    return node.target not in _ARITHMETIC or type(ops.argument(node, "other")) is int


def _shaped(emit: Emitter, source: Node, shape: Any) -> Node:
    return emit.call(ops.aten.reshape.default, source, list(shape))


def _reshaped(emit: Emitter) -> Node:
    return _shaped(emit, ops.data_input(emit.origin), value_of(emit.origin).shape)


# ------------------------------------------------------------------ parts and copies


def _parts(emit: Emitter) -> Node | None:
    node = emit.origin
    readers = list(node.users)
    if any(reader.target is not ops.GETITEM for reader in readers):
        return None
    source: Node = ops.data_input(node)
    dim = ops.argument(node, "dim") % value_of(source).dim()
    values = value_of(node)
    sizes = [value.shape[dim] if value.dim() == value_of(source).dim() else 1 for value in values]
    own = any(ops.is_op(user, ops.QUANTIZE) for reader in readers for user in reader.users)
    for reader in readers:
        number: Any = reader.args[1]
        begin = sum(sizes[:number])
        found = _slice(emit, _read_again(emit, source, own), dim, begin, begin + sizes[number])
        if value_of(found).shape != values[number].shape:
            found = _shaped(emit, found, values[number].shape)
        reader.replace_all_uses_with(found)
    return source


def _read_again(emit: Emitter, source: Node, own: bool) -> Node:
    """Another dequantize of the same number: of one that is read twice, no reader is quantized."""
    return emit.again(source) if own and ops.is_op(source, ops.DEQUANTIZE) else source


def _slice(emit: Emitter, source: Node, dim: int, begin: int, end: int) -> Node:
    return emit.call(ops.aten.slice.Tensor, source, dim, begin, end)


def _picked(emit: Emitter) -> Node | None:
    node = emit.origin
    source, index = ops.data_input(node), ops.argument(node, "index")
    if not isinstance(index, int):
        return None
    shape = value_of(source).shape
    dim = ops.argument(node, "dim") % len(shape)
    index %= shape[dim]
    return _shaped(emit, _slice(emit, source, dim, index, index + 1), value_of(node).shape)


def _repeated(emit: Emitter) -> Node | None:
    source = ops.data_input(emit.origin)
    before, after = value_of(source).shape, value_of(emit.origin).shape
    if is_constant(source) or len(before) != len(after):
        return None
    grown = [d for d, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
    if len(grown) != 1 or not 1 < after[grown[0]] <= MOST_COPIES:
        return None
    # The delegate takes no concatenation that reads one node twice.
    copies = [_shaped(emit, source, before) for _ in range(after[grown[0]])]
    return emit.call(ops.aten.cat.default, copies, grown[0])


# ------------------------------------------------------------------ arithmetic


def _mean(emit: Emitter) -> Node | None:
    node = emit.origin
    source, dims = ops.data_input(node), ops.argument(node, "dim")
    rank = value_of(source).dim()
    if not dims or ops.argument(node, "dtype") is not None:
        return None
    taken = sorted(d % rank for d in dims)
    if rank == 4 and taken == [2, 3]:  # the one that XNNPACK has, if the dimensions stay
        return None
    kept = [d for d in range(rank) if d not in taken]
    if kept + taken != list(range(rank)):
        source = emit.call(ops.aten.permute.default, source, [*kept, *taken])
    shape = value_of(source).shape
    rows = _shaped(emit, source, [*shape[: len(kept)], math.prod(shape[len(kept) :])])
    return _shaped(emit, _mean_of_rows(emit, rows), value_of(node).shape)


def _mean_of_rows(emit: Emitter, source: Node) -> Node:
    count = value_of(source).shape[-1]
    equal = emit.constant("equal_weights", torch.full((1, count), 1.0 / count))
    return emit.call(ops.aten.linear.default, source, equal)


def _power(emit: Emitter) -> Node | None:
    source, exponent = ops.data_input(emit.origin), ops.argument(emit.origin, "exponent")
    if exponent not in (2, 3):
        return None
    square = emit.call(ops.aten.mul.Tensor, source, source)
    return square if exponent == 2 else emit.call(ops.aten.mul.Tensor, square, source)


def _normed(emit: Emitter) -> Node | None:
    node = emit.origin
    source, shape = ops.data_input(node), ops.argument(node, "normalized_shape")
    value = value_of(source)
    # Four dimensions are an image to the delegate, which would turn it around for each step.
    if len(shape) != 1 or value.dim() > 3 or shape[0] > WIDEST_ROW:
        return None
    if value.numel() // shape[0] < LEAST_ROWS:
        return None
    weight, bias, eps = (ops.argument(node, name) for name in ("weight", "bias", "eps"))
    centred = emit.call(ops.aten.sub.Tensor, source, _mean_of_rows(emit, source))
    square = emit.call(ops.aten.mul.Tensor, centred, centred)
    variance = emit.call(ops.aten.add.Tensor, _mean_of_rows(emit, square), eps)
    found = emit.call(ops.aten.mul.Tensor, centred, emit.call(ops.aten.rsqrt.default, variance))
    if weight is not None:
        found = emit.call(ops.aten.mul.Tensor, found, weight)
    return found if bias is None else emit.call(ops.aten.add.Tensor, found, bias)


def _with_float(emit: Emitter) -> Node:
    """With its integer as float: ExecuTorch would convert that in each call."""
    node = emit.origin
    other = float(ops.argument(node, "other"))
    return emit.call(node.target, ops.data_input(node), other, **node.kwargs)


def _hard_sigmoid(emit: Emitter) -> Node:
    scaled = emit.call(ops.aten.mul.Tensor, ops.data_input(emit.origin), 1 / 6)
    return emit.call(ops.aten.clamp.default, emit.call(ops.aten.add.Tensor, scaled, 0.5), 0.0, 1.0)


FORMS: Mapping[Any, Form] = {
    **dict.fromkeys(ops.SPLIT, _parts),
    ops.aten.select.int: _picked,
    ops.aten.unsqueeze.default: _reshaped,
    ops.aten.squeeze.dim: _reshaped,
    ops.aten.squeeze.dims: _reshaped,
    ops.aten.squeeze.default: _reshaped,
    ops.aten.expand.default: _repeated,
    ops.aten.mean.dim: _mean,
    ops.aten.pow.Tensor_Scalar: _power,
    ops.aten.layer_norm.default: _normed,
    ops.aten.hardsigmoid.default: _hard_sigmoid,
    **dict.fromkeys(_ARITHMETIC, _with_float),
}
"""By operator; none is the result where it has no such form."""
