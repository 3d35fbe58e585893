"""Telling additive attention masks from other tensors.

A mask holds 0 where attention may look and a huge negative number where it may not. One scale
over both leaves no resolution for anything else, so an addition of a mask stays in float.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.fx import GraphModule, Node

from pt2q.ir.graph import get_constant, is_float_tensor
from pt2q.ir.ops import CAT, MASK_ARITHMETIC, SHAPE, is_op

MASK_VALUE = -1e4
"""Literals and constants at or below this are taken for masks: -1e4, finfo.min and -inf occur."""

MASK_BUILDING = MASK_ARITHMETIC | SHAPE | CAT


@dataclass
class MaskFinder:
    """Remembers, per node of one graph, whether a mask value enters it.

    Args:
        model: the module that owns the graph, for constants.
    """

    model: GraphModule
    _known: dict[Node, bool] = field(default_factory=dict)

    def is_mask(self, node: Node) -> bool:
        """Whether a tensor is built, by elementwise selection and scaling, from a mask value.

        The walk goes back through masks' own arithmetic only: what a convolution, a matrix
        product or a norm has computed is no mask.
        """
        stack = [node]
        while stack:
            at = stack[-1]
            if at in self._known:
                stack.pop()
                continue
            waiting = [s for s in self._sources(at) if s not in self._known]
            if waiting:
                stack.extend(waiting)
                continue
            self._known[at] = self._holds_mask_value(at)
            stack.pop()
        return self._known[node]

    def _sources(self, node: Node) -> list[Node]:
        return list(node.all_input_nodes) if is_op(node, MASK_BUILDING) else []

    def _holds_mask_value(self, node: Node) -> bool:
        if node.op == "get_attr":
            return self._constant_holds_mask_value(node)
        if not is_op(node, MASK_BUILDING):
            return False
        # The numbers given to shape operators are sizes and positions, not values.
        literals = (*node.args, *node.kwargs.values()) if is_op(node, MASK_ARITHMETIC) else ()
        if any(_is_mask_literal(value) for value in literals):
            return True
        return any(self._known[source] for source in self._sources(node))

    def _constant_holds_mask_value(self, node: Node) -> bool:
        if not is_float_tensor(node):
            return False
        value = get_constant(self.model, node)
        return value.numel() > 0 and bool(torch.amin(value.detach()) <= MASK_VALUE)


def _is_mask_literal(value: object) -> bool:
    # A mask may be written as (mask - 1) * 10000 too: the sign is the other factor's.
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return value <= MASK_VALUE or value >= -MASK_VALUE
