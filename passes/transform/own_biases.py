"""Give every operator a bias of its own, for runtimes that store a bias in its quantized form.

XNNPACK's delegate quantizes a bias with the product of the input's and the weight's scale and
stores it once per constant. Where a module is called twice, both calls read the bias in the scale
of the first, and the second computes something else altogether.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import GraphModule, Node
from torch.nn import Parameter

from pt2q.ir.emit import Emitter
from pt2q.ir.graph import get_constant, is_constant, is_parameter
from pt2q.ir.ops import ADDMM, CONV, LINEAR, argument, is_op, set_argument


@dataclass(frozen=True)
class OwnBiases:
    """Copy the biases that several operators read, one for each but the first."""

    def __call__(self, model: GraphModule) -> bool:
        """Copy in place; returns whether anything was."""
        seen: set[str] = set()
        emit = Emitter(model, "pt2q.own_biases")
        copied = False
        for node in list(model.graph.nodes):
            bias = argument(node, _name(node)) if is_op(node, CONV | LINEAR | ADDMM) else None
            if not isinstance(bias, Node) or not is_constant(bias):
                continue
            if str(bias.target) in seen:
                _copy_bias(emit, node, bias)
                copied = True
            seen.add(str(bias.target))
        return copied


def _name(node: Node) -> str:
    return "self" if is_op(node, ADDMM) else "bias"


def _copy_bias(emit: Emitter, node: Node, bias: Node) -> None:
    model = emit.model
    value = get_constant(model, bias).detach().clone()
    if is_parameter(model, str(bias.target)):
        value = Parameter(value, requires_grad=get_constant(model, bias).requires_grad)
    set_argument(node, _name(node), emit.after(bias).constant(str(bias.target), value))
