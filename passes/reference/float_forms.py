"""Where float operators read integers: the float form of a value, written once."""

from __future__ import annotations

import torch
from torch.fx import Node

from pt2q.ir import ops
from pt2q.ir.constants import Constants
from pt2q.ir.graph import value_of
from pt2q.passes.reference.arithmetic import Arithmetic
from pt2q.passes.reference.float_border import dequantize_float, quantize_float, to_float
from pt2q.passes.reference.params import quantization_of
from pt2q.passes.reference.values import Quantized, Sum, Value


class FloatForms:
    """Writes what is read in float.

    Args:
        emit: writes the nodes.
        values: what nodes are in integers; grows while the graph is rewritten.
        constants: the known values of the graph.
    """

    def __init__(self, emit: Arithmetic, values: dict[Node, Value], constants: Constants) -> None:
        self.emit = emit
        self.values = values
        self.constants = constants
        self.written: dict[Node, Node] = {}

    def give_operands(self, node: Node) -> None:
        """Give a float operator its operands in float."""
        for operand in node.all_input_nodes:
            found = self.values.get(operand)
            if found is None or ops.is_op(operand, ops.DEQUANTIZE):
                continue  # a dequantize that is still read is written out at the end
            node.replace_input_with(operand, self._in_float(operand, found))

    def _in_float(self, operand: Node, found: Value) -> Node:
        """The float form of a value, written once, where the value is made."""
        if operand not in self.written:
            here = self.emit.at
            self.emit.before(operand)
            self.written[operand] = self._written(found, value_of(operand).dtype)
            self.emit.before(here)
        return self.written[operand]

    def _written(self, found: Value, dtype: torch.dtype) -> Node:
        if isinstance(found, Sum):
            return to_float(self.emit, found, dtype)
        return dequantize_float(self.emit, found, dtype)

    def give_size(self, node: Node) -> None:
        """Sizes are read off the integers, so that a float value is not made for them."""
        source = node.args[0]
        found = self.values.get(source) if isinstance(source, Node) else None
        if found is None or not isinstance(source, Node):
            return
        integers = found.node if isinstance(found, Quantized) else found.terms[0].node
        if value_of(integers).shape == value_of(source).shape:
            node.replace_input_with(source, integers)
        else:
            self.give_operands(node)

    def write_border(self, node: Node) -> None:
        """Write a quantize or dequantize that is still read as what it consists of."""
        params = quantization_of(node, self.constants)
        source = node.args[0]
        if not node.users or params is None or params.group is not None:
            return
        assert isinstance(source, Node)
        self.emit.before(node)
        if ops.is_op(node, ops.QUANTIZE):
            new = quantize_float(self.emit, source, params)
        else:
            new = dequantize_float(self.emit, Quantized(source, params), value_of(node).dtype)
        node.replace_all_uses_with(new)
