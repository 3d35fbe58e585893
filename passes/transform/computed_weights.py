"""Give operators their weights as constants, where the graph computes them from constants.

Decomposed programs multiply by a transposed weight, models cast half-precision weights, slice fused
ones or normalize them by parametrization. Backends want a weight that is a constant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from pt2q.ir import ops
from pt2q.ir.constants import Constants, ancestors, chain_to_constant, drop_assertions, erase_unread
from pt2q.ir.emit import Emitter
from pt2q.ir.graph import (
    carry,
    is_constant,
    is_float_tensor,
    is_parameter,
    is_persistent,
)
from pt2q.ir.module import QuantGraphModule

PASS_NAME = "pt2q.computed_weights"


@dataclass(frozen=True)
class FoldComputedWeights:
    """Compute weights and biases that depend on constants only, once, here.

    Not for training: a weight that is computed from parameters is trained through them.
    """

    def __call__(self, model: GraphModule) -> bool:
        """Fold in place; returns whether anything was."""
        if not isinstance(model, QuantGraphModule):
            return False
        wanted = [
            operand
            for node in model.graph.nodes
            for operand in _weights(node)
            if operand.op == "call_function" and is_float_tensor(operand)
        ]
        if not wanted:
            return False
        folder = _Folder(model)
        folded = [operand for operand in dict.fromkeys(wanted) if folder.fold(operand)]
        if folded:
            drop_assertions(model, folder.constants)
            known = (n for n in model.graph.nodes if folder.constants.is_constant(n))
            erase_unread([n for n in known if not n.users])
        return bool(folded)


def _weights(node: Node) -> list[Node]:
    """What an operator reads as its weight and its bias."""
    if ops.is_op(node, ops.CONV | ops.CONV_GENERIC | ops.LINEAR):
        names: tuple[str, ...] = ("weight", "bias")
    elif ops.is_op(node, ops.ADDMM):
        names = ("mat2", "self")
    elif ops.is_op(node, ops.MM | ops.MATMUL):
        names = ("mat2",) if ops.is_op(node, ops.MM) else ("other",)
    else:
        return []
    found = [ops.argument(node, name) for name in names]
    return [operand for operand in found if isinstance(operand, Node)]


class _Folder:
    def __init__(self, model: QuantGraphModule) -> None:
        self.model = model
        self.constants = Constants(model)
        self.emit = Emitter(model, PASS_NAME)
        self.stored: dict[int, str] = {}
        self.numbers: dict[Any, int] = {}
        self.number_of: dict[Node, int] = {}

    def fold(self, node: Node) -> bool:
        if not self.constants.is_constant(node):
            return False
        number = self._number(node)
        if number not in self.stored:
            self.stored[number] = self._store(node)
        new = self.emit.before(node).read(self.stored[number])
        carry(new, *reversed(chain_to_constant(node)))
        node.replace_all_uses_with(new)
        return True

    def _store(self, node: Node) -> str:
        start = chain_to_constant(node)[-1]
        base = str(start.target) if is_constant(start) else None
        value = self.constants.value(node).detach().clone().contiguous()
        if base is not None and is_parameter(self.model, base):
            value = nn.Parameter(value)
        persistent = base is None or is_persistent(self.model, base)
        return self.emit.keep(f"{base or node.name}_computed", value, persistent=persistent)

    def _number(self, node: Node) -> int:
        """Equal for nodes that compute the same from the same constants."""
        for step in ancestors(node):
            if step not in self.number_of:
                literals = repr(map_arg((step.args, step.kwargs), lambda n: None))
                operands = tuple(self.number_of[n] for n in _operands(step))
                key = (step.target, literals, operands)
                self.number_of[step] = self.numbers.setdefault(key, len(self.numbers))
        return self.number_of[node]


def _operands(node: Node) -> list[Node]:
    """What a call reads, in order, once for each time."""
    found: list[Node] = []
    map_arg((node.args, node.kwargs), found.append)
    return found
