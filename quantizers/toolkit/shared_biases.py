"""Give every operator a bias of its own, for runtimes that store a bias in its quantized form.

XNNPACK's delegate quantizes a bias with the product of the input's and the weight's scale and
stores it once per constant. Where a module is called twice, both calls read the bias in the scale
of the first, and the second computes something else altogether.
"""

from __future__ import annotations

from torch.fx import GraphModule, Node
from torch.nn import Parameter

from pt2q.ir.emit import Emitter
from pt2q.ir.graph import get_constant, is_constant, is_parameter
from pt2q.ir.ops import ADDMM, CONV, LINEAR, is_op, set_argument
from pt2q.quantizers.toolkit.reading.tensor_roles import roles_of

WITH_BIAS = CONV | LINEAR | ADDMM


def untie_biases(model: GraphModule) -> int:
    """Copy the biases that several operators read.

    Args:
        model: an exported module; changed in place.

    Returns:
        How many copies were made.
    """
    seen: set[str] = set()
    emit = Emitter(model, "pt2q.untie_biases")
    copies = 0
    for node in list(model.graph.nodes):
        bias = roles_of(node).bias if is_op(node, WITH_BIAS) else None
        if bias is None or not is_constant(bias):
            continue
        if str(bias.target) not in seen:
            seen.add(str(bias.target))
            continue
        _copy_bias(emit, node, bias)
        copies += 1
    if copies:
        model.recompile()
    return copies


def _copy_bias(emit: Emitter, node: Node, bias: Node) -> None:
    model = emit.model
    value = get_constant(model, bias).detach().clone()
    if is_parameter(model, str(bias.target)):
        value = Parameter(value, requires_grad=get_constant(model, bias).requires_grad)
    copy = emit.after(bias).constant(str(bias.target), value)
    set_argument(node, "self" if is_op(node, ADDMM) else "bias", copy)
