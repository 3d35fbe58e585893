"""Write products that add what is given as a product and an addition.

Runtimes that read ONNX multiply two activations in integers, and add in integers; not both at once.
A product with a constant is a linear layer everywhere, but for what it adds: a linear layer adds a
constant row, and no matrix or computed bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from pt2q.ir import ops
from pt2q.ir.constants import Constants
from pt2q.ir.emit import Emitter
from pt2q.ir.graph import is_float_tensor, value_of

PASS_NAME = "pt2q.split_products"


@dataclass(frozen=True)
class SplitProducts:
    """Write ``addmm(c, a, b)`` and ``baddbmm(c, a, b)`` as ``matmul(a, b) + c``.

    A beta of 0 adds nothing. Another beta multiplies ``c``, and an alpha the first factor, by a
    tensor of one number, which runtimes do in integers.

    Args:
        keep: operators that stay as they are.
        of_constant: instead, ``addmm`` of a constant where ``c`` is no bias of a linear layer: a
            linear layer and an addition. Its weight, computed in the graph, is for
            `FoldComputedWeights`.
    """

    keep: frozenset[ops.Target] = frozenset()
    of_constant: bool = False

    def __call__(self, model: GraphModule) -> bool:
        """Rewrite in place; returns whether anything was."""
        wanted = ops.ADDMM if self.of_constant else ops.ADDMM | ops.BADDBMM
        found = [n for n in model.graph.nodes if _can_be_split(n, wanted - self.keep)]
        if not found:
            return False
        constants = Constants(model)
        if self.of_constant:
            found = [n for n in found if _adds_no_bias(n, constants)]
        else:
            found = [n for n in found if not _reads_weight(n, constants)]
        for node in found:
            _split(Emitter(model, PASS_NAME).before(node), node, constants)
        return bool(found)


def _split(emit: Emitter, node: Node, constants: Constants) -> None:
    first, second = _factors(node)
    alpha, beta, added = (ops.argument(node, name) for name in ("alpha", "beta", "self"))
    if ops.is_op(node, ops.ADDMM) and constants.is_constant(second):
        turned = emit.call(ops.aten.permute.default, second, [1, 0])
        weight = _times(emit, turned, alpha, True)
        found = emit.call(ops.aten.linear.default, first, weight)
    else:
        first = _times(emit, first, alpha, constants.is_constant(first))
        found = emit.call(ops.aten.matmul.default, first, second)
    if beta:
        added = _times(emit, added, beta, constants.is_constant(added))
        found = emit.call(ops.aten.add.Tensor, found, added)
    emit.replace_by(found)


def _adds_no_bias(node: Node, constants: Constants) -> bool:
    """Whether a product with a constant adds what a linear layer does not."""
    first, second = _factors(node)
    if constants.is_constant(first) or not constants.is_constant(second):
        return False
    added = ops.argument(node, "self")
    row = (value_of(node).shape[-1],)
    return not constants.is_constant(added) or tuple(value_of(added).shape) != row


def _reads_weight(node: Node, constants: Constants) -> bool:
    """Whether a product is with a constant: others split it, or its scales stay."""
    plain = ops.argument(node, "alpha") == 1 and ops.argument(node, "beta") in (0, 1)
    may = ops.is_op(node, ops.BADDBMM) and plain
    return not may and any(map(constants.is_constant, _factors(node)))


def _can_be_split(node: Node, wanted: frozenset[ops.Target]) -> bool:
    if not ops.is_op(node, wanted) or not is_float_tensor(node):
        return False
    scales = [ops.argument(node, name) for name in ("alpha", "beta")]
    numbers = all(isinstance(scale, int | float) for scale in scales)
    return numbers and scales[0] != 0 and not ops.has_argument(node, "out_dtype")


def _factors(node: Node) -> list[Node]:
    names = ("mat1", "mat2") if ops.is_op(node, ops.ADDMM) else ("batch1", "batch2")
    return [ops.argument(node, name) for name in names]


def _times(emit: Emitter, node: Node, number: Any, fixed: bool) -> Node:
    """A tensor times a number; of constants the number is a literal, for others to compute once."""
    if number == 1:
        return node
    if fixed:
        return emit.call(ops.multiply, node, number)
    of_one = torch.full((1,), number, dtype=value_of(node).dtype, device=value_of(node).device)
    return emit.call(ops.multiply, node, emit.constant("number", of_one))
