"""Replace float arithmetic between dequantize and quantize by integer arithmetic.

One walk over the graph. What is known of a value in integers, `Quantized` or an exact `Sum`, is
remembered; a rule makes the value of a call from those of its operands; a quantize makes integers
of it. Where float operators read such a value it is written out as a dequantization.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Node

from pt2q.ir import ops
from pt2q.ir.constants import Constants
from pt2q.ir.graph import handle_of, is_constant, is_float_tensor, origin_name
from pt2q.ir.module import QuantGraphModule
from pt2q.ir.qparams import QParams
from pt2q.ir.storage import StorageMap
from pt2q.passes.reference.arithmetic import Arithmetic
from pt2q.passes.reference.call import Call
from pt2q.passes.reference.float_forms import FloatForms
from pt2q.passes.reference.params import quantization_of
from pt2q.passes.reference.reference_report import LeftInFloat, ReferenceReport, StoredValue
from pt2q.passes.reference.requantize import requantize
from pt2q.passes.reference.rule_table import RULES
from pt2q.passes.reference.values import NoIntegerForm, Quantized, Sum, Value

PASS_NAME = "pt2q.reference"


@dataclass(frozen=True)
class RewriteToReference:
    """Write each quantized operator as the integer arithmetic it stands for.

    The table of rules is `pt2q.passes.reference.RULES`. Each quantize and dequantize that is
    left, at the borders to float, is written as the ATen operators it consists of.
    """

    def __call__(self, model: QuantGraphModule) -> bool:
        """Rewrite; the report is left in the model's record."""
        rewriter = _Rewriter(model)
        report = rewriter.run()
        model.record.put(report)
        for item in report.left:
            model.record.note(PASS_NAME, item.node, item.reason)
        return bool(rewriter.emit.made)


class _Rewriter:
    def __init__(self, model: QuantGraphModule) -> None:
        self.graph = model.graph
        self.emit = Arithmetic(model, PASS_NAME)
        self.constants = Constants(model)
        self.storage = StorageMap.of(model.graph)
        self.values: dict[Node, Value] = {}
        self.floats = FloatForms(self.emit, self.values, self.constants)
        self.integer: list[str] = []
        self.left: list[LeftInFloat] = []
        self.stored: list[StoredValue] = []

    def run(self) -> ReferenceReport:
        """Walk once forwards, write the borders, walk once backwards to erase."""
        nodes = list(self.graph.nodes)
        for node in nodes:
            self.emit.before(node)
            self._visit(node)
        for node in nodes:
            if ops.is_op(node, ops.QUANTIZE | ops.DEQUANTIZE):
                self.floats.write_border(node)
        self._erase()
        return ReferenceReport(tuple(self.integer), tuple(self.left), tuple(self.stored))

    def _visit(self, node: Node) -> None:
        if node.op not in ("call_function", "output"):
            return
        if ops.is_op(node, ops.DEQUANTIZE):
            self._dequantize(node)
        elif ops.is_op(node, ops.QUANTIZE):
            self._quantize(node)
        elif ops.is_op(node, ops.SIZE):
            self.floats.give_size(node)
        elif any(n in self.values for n in node.all_input_nodes):
            self._operator(node)

    # -------------------------------------------------------------- quantize, dequantize

    def _dequantize(self, node: Node) -> None:
        params = quantization_of(node, self.constants)
        integers = node.args[0]
        if params is not None and isinstance(integers, Node) and self._is_private(node):
            self.values[node] = Quantized(integers, params)

    def _quantize(self, node: Node) -> None:
        params = quantization_of(node, self.constants)
        source = node.args[0]
        assert isinstance(source, Node)
        found = self.values.get(source)
        if found is None or params is None or params.group is not None:
            self.floats.give_operands(node)
            return
        self.emit.before(node).named_after(source)
        try:
            rounded = self._rounded(found, params)
        except NoIntegerForm:
            self.floats.give_operands(node)
            return
        node.replace_all_uses_with(rounded)
        if params.is_static:
            origin, handle = origin_name(source), handle_of(source)
            self.stored.append(StoredValue(rounded.name, origin, handle, params))

    def _rounded(self, found: Value, params: QParams) -> Node:
        if isinstance(found, Sum):
            return requantize(self.emit, found, params).node
        if found.params.same(params):
            return found.node
        call = Call(self.emit.at, self.emit, self.values, self.constants)
        return requantize(self.emit, call.widened(found), params).node

    # -------------------------------------------------------------- operators

    def _operator(self, node: Node) -> None:
        rule = RULES.get(node.target) if node.op == "call_function" else None  # type: ignore[arg-type]
        if rule is None or not self._is_private(node):
            written = "its result is overwritten while others read it"
            self._stays(node, "no rule gives its integer form" if rule is None else written)
            return
        try:
            call = Call(node, self.emit, self.values, self.constants)
            self.values[node] = rule(call)
        except NoIntegerForm as reason:
            self._stays(node, str(reason))
            return
        self.integer.append(node.name)

    def _is_private(self, node: Node) -> bool:
        """Whether a result is not written to, but by an activation that alone reads it."""
        if not self.storage.written_later(node):
            return True
        own = self.storage.root[node] is node or ops.is_mutating(node)
        return own and len(node.users) == 1 and all(map(ops.is_mutating, node.users))

    def _stays(self, node: Node, reason: str) -> None:
        self.floats.give_operands(node)
        if node.op == "output" or ops.is_op(node, ops.CHOOSE_QPARAMS):
            return
        between = self._reads_only_quantized(node) and _is_quantized_later(node)
        self.left.append(LeftInFloat(node.name, str(node.target), reason, between))

    def _reads_only_quantized(self, node: Node) -> bool:
        """Whether all that is read in float is quantized or constant: the quantizer's wish."""
        return all(
            n in self.values or self.constants.is_constant(n) or not is_float_tensor(n)
            for n in node.all_input_nodes
        )

    def _erase(self) -> None:
        made = set(self.emit.made)
        for node in reversed(self.graph.nodes):
            ours = node in self.values or node in made or node.op == "get_attr"
            if not node.users and (ours or ops.is_op(node, ops.QUANTIZE | ops.DEQUANTIZE)):
                self.graph.erase_node(node)


def _is_quantized_later(node: Node) -> bool:
    """Whether a result is quantized with known parameters, at once or after being moved."""
    return any(
        (ops.is_op(user, ops.QUANTIZE) and _is_known(user.args[1]))
        or (ops.is_op(user, ops.MONOTONE) and _is_quantized_later(user))
        for user in node.users
    )


def _is_known(argument: object) -> bool:
    return not isinstance(argument, Node) or is_constant(argument)
