"""A converted model that gives what it rounds besides its outputs."""

from __future__ import annotations

from collections.abc import Iterator

from torch.fx import GraphModule, Node

from pt2q.ir import ops
from pt2q.ir.constants import Constants
from pt2q.ir.emit import Emitter
from pt2q.ir.graph import origin_name, value_of
from pt2q.ir.module import QuantGraphModule, copy_module
from pt2q.ir.qparams import read_qparams, write_dequantize
from pt2q.ir.torch_private import codegen_of, pytree, set_codegen

PASS = "show_values"


def showing(model: GraphModule) -> tuple[QuantGraphModule, tuple[str, ...]]:
    """A copy whose further outputs are the values that are rounded, as integers say them.

    What a kernel fuses stays fused: a value that is rounded in the graph is one that kernels store.
    Of one that is rounded with parameters found at run time it is the value before, which kernels
    store as well.

    Args:
        model: converted; it is not changed.

    Returns:
        The copy, whose outputs are one flat tuple, and the nodes of the exported program whose
        values the further ones are, in order.
    """
    result = copy_module(model)
    output = next(node for node in reversed(result.graph.nodes) if node.op == "output")
    emit = Emitter(result, PASS)
    found: dict[str, Node] = {}
    for node in _rounded(result):
        source = node.all_input_nodes[0]
        found.setdefault(origin_name(source), _shown(emit, node, source))
    leaves = [*pytree.tree_leaves(output.args[0]), *found.values()]
    output.args = (tuple(leaves),)
    _return_flat(result, len(leaves))
    result.recompile()
    return result, tuple(found)


def _rounded(model: GraphModule) -> Iterator[Node]:
    """The first quantize, or search for parameters, of each value that is no constant."""
    constants = Constants(model)
    seen: set[Node] = set()
    for node in list(model.graph.nodes):
        if not ops.is_op(node, ops.QUANTIZE | ops.CHOOSE_QPARAMS):
            continue
        source = node.all_input_nodes[0]
        if source in seen or constants.is_constant(source):
            continue
        seen.add(source)
        yield node


def _shown(emit: Emitter, node: Node, source: Node) -> Node:
    if ops.is_op(node, ops.CHOOSE_QPARAMS):
        return source
    return write_dequantize(emit.after(node, source), node, read_qparams(node), value_of(source))


def _return_flat(model: GraphModule, count: int) -> None:
    codegen = codegen_of(model.graph)
    flat = pytree.tree_structure(tuple(range(count)))
    changed = type(codegen)(codegen.pytree_info._replace(out_spec=flat))
    set_codegen(model.graph, changed)
