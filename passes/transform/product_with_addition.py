"""Write products that add what is given as a product and an addition.

Runtimes that read ONNX multiply two activations in integers, and add in integers; not both at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import GraphModule, Node

from pt2q.ir import ops
from pt2q.ir.constants import Constants
from pt2q.ir.emit import Emitter
from pt2q.ir.graph import is_float_tensor

PASS_NAME = "pt2q.split_products"


@dataclass(frozen=True)
class SplitProducts:
    """Write ``baddbmm(c, a, b)`` and ``addmm(c, a, b)`` as ``matmul(a, b) + c``.

    With a beta of 0 nothing is added. Those with another beta, or an alpha, stay: numbers between
    the two would keep them in float. So does ``addmm`` of a constant, which is a linear layer.

    Args:
        keep: operators that stay as they are.
    """

    keep: frozenset[ops.Target] = frozenset()

    def __call__(self, model: GraphModule) -> bool:
        """Rewrite in place; returns whether anything was."""
        found = [n for n in model.graph.nodes if _is_plain(n, ops.BADDBMM | ops.ADDMM - self.keep)]
        if not found:
            return False
        constants = Constants(model)
        return any([_split(model, node, constants) for node in found])


def _is_plain(node: Node, wanted: frozenset[ops.Target]) -> bool:
    if not ops.is_op(node, wanted) or not is_float_tensor(node):
        return False
    if ops.has_argument(node, "out_dtype"):
        return False
    return ops.argument(node, "alpha") == 1 and ops.argument(node, "beta") in (0, 1)


def _split(model: GraphModule, node: Node, constants: Constants) -> bool:
    names = ("mat1", "mat2") if ops.is_op(node, ops.ADDMM) else ("batch1", "batch2")
    factors = [ops.argument(node, name) for name in names]
    if ops.is_op(node, ops.ADDMM) and any(map(constants.is_constant, factors)):
        return False
    emit = Emitter(model, PASS_NAME).before(node)
    found = emit.call(ops.aten.matmul.default, *factors)
    if ops.argument(node, "beta"):
        found = emit.call(ops.aten.add.Tensor, found, ops.argument(node, "self"))
    emit.replace_by(found)
    return True
