"""Write products with a transposed weight as the linear layers that they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.fx import GraphModule, Node

from pt2q.ir import ops
from pt2q.ir.constants import Constants
from pt2q.ir.emit import Emitter
from pt2q.ir.graph import (
    is_constant,
    is_float_tensor,
    value_of,
)

PASS_NAME = "pt2q.compose_linear"
_PRODUCTS = ops.ADDMM | ops.MM | ops.MATMUL


@dataclass(frozen=True)
class ComposeLinear:
    """Write ``addmm(bias, x, w.t())``, ``mm(x, w.t())`` and ``x @ w.t()`` as the linear they are.

    Decompositions make the former of the latter. The weight stays the constant that it is, so this
    is done in training, too.

    Args:
        keep: operators that stay as they are.
        turn: also products with a constant that is not transposed (``[in, out]``, as GPT-2 has
            them): the weight is then transposed in the graph, for `FoldComputedWeights` to compute.
        unscale: also ``addmm`` of a constant with an alpha or beta: weight and bias are then
            multiplied by them in the graph, as above. Not for training.
    """

    keep: frozenset[ops.Target] = frozenset()
    turn: bool = False
    unscale: bool = False

    def __call__(self, model: GraphModule) -> bool:
        """Rewrite in place; returns whether anything was."""
        unscaled = self._unscale(model)
        return any([self._rewrite(node) for node in list(model.graph.nodes)]) or unscaled

    def _unscale(self, model: GraphModule) -> bool:
        wanted = ops.ADDMM - self.keep if self.unscale else frozenset()
        found = [n for n in model.graph.nodes if ops.is_op(n, wanted) and _is_scaled(n)]
        if not found:
            return False
        constants = Constants(model)
        return any([_multiply_constants(model, node, constants) for node in found])

    def _rewrite(self, node: Node) -> bool:
        if node.target in self.keep:
            return False
        if self.turn:
            _turn(node)
        found = _linear_arguments(node)
        if found is None:
            return False
        *_, transposed = node.all_input_nodes
        node.target, node.args, node.kwargs = ops.aten.linear.default, found, {}
        if not transposed.users:
            transposed.graph.erase_node(transposed)
        return True


def _is_scaled(node: Node) -> bool:
    """Whether an ``addmm`` scales by numbers, and not all of the product by nothing."""
    alpha, beta = (ops.argument(node, name) for name in ("alpha", "beta"))
    numbers = all(isinstance(scale, int | float) for scale in (alpha, beta))
    numbers &= not ops.has_argument(node, "out_dtype")
    return numbers and alpha != 0 and (alpha, beta) != (1, 1)


def _multiply_constants(model: GraphModule, node: Node, constants: Constants) -> bool:
    """``linear(x, (alpha w)^T, beta b)`` of an ``addmm``, where w and b are constants."""
    bias, x, factor = (ops.argument(node, name) for name in ("self", "mat1", "mat2"))
    alpha, beta = (ops.argument(node, name) for name in ("alpha", "beta"))
    if not constants.is_constant(factor) or not is_float_tensor(factor):
        return False
    fits = constants.is_constant(bias) and value_of(bias).shape == value_of(factor).shape[1:]
    if beta != 0 and not fits:
        return False
    emit = Emitter(model, PASS_NAME).before(node, origin=factor)
    weight = factor if alpha == 1 else emit.call(ops.aten.mul.Tensor, factor, alpha)
    weight = emit.call(ops.aten.permute.default, weight, [1, 0])
    if beta not in (0, 1):
        bias = emit.before(node, origin=bias).call(ops.aten.mul.Tensor, bias, beta)
    node.target, node.kwargs = ops.aten.linear.default, {}
    node.args = (x, weight, bias if beta != 0 else None)
    return True


def _turn(node: Node) -> None:
    """Let a product read its constant factor transposed twice."""
    name = "mat2" if ops.is_op(node, ops.ADDMM | ops.MM) else "other"
    factor = ops.argument(node, name) if ops.is_op(node, _PRODUCTS) else None
    if not isinstance(factor, Node) or not is_constant(factor):
        return
    model = node.graph.owning_module
    if model is None or not is_float_tensor(factor) or value_of(factor).dim() != 2:
        return
    emit = Emitter(model, PASS_NAME).before(node, origin=factor)
    stored = emit.call(ops.aten.permute.default, factor, [1, 0])
    ops.set_argument(node, name, emit.call(ops.aten.permute.default, stored, [1, 0]))


def _linear_arguments(node: Node) -> tuple[Node, Node, Node | None] | None:
    """``(x, weight, bias)`` of a product with a transposed constant, or None."""
    if ops.is_op(node, ops.ADDMM):
        if ops.argument(node, "alpha") != 1 or ops.argument(node, "beta") != 1:
            return None
        bias, x, factor = node.args[:3]
    elif ops.is_op(node, ops.MM | ops.MATMUL):
        (x, factor), bias = node.args[:2], None
    else:
        return None
    weight = _transposed(factor)
    if weight is None or not isinstance(x, Node) or value_of(x).dim() < 2:
        return None
    if not isinstance(bias, Node):
        return x, weight, None
    fits = tuple(value_of(bias).shape) == (value_of(weight).shape[0],)
    return (x, weight, bias) if fits else None


def _transposed(factor: Any) -> Node | None:
    """What a factor is the transpose of: a constant, or the transpose of one."""
    source = _source_of_transpose(factor)
    inner = _source_of_transpose(source)
    constant = source if inner is None else inner
    return source if is_constant(constant) and is_float_tensor(constant) else None


def _source_of_transpose(factor: Any) -> Node | None:
    if not isinstance(factor, Node) or factor.op != "call_function" or not factor.args:
        return None
    source = factor.args[0]
    if not isinstance(source, Node) or not is_float_tensor(source):
        return None
    rank = int(value_of(source).dim())
    return source if rank == 2 and ops.permutation(factor, rank) == [1, 0] else None
