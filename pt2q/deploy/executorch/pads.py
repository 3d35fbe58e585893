"""Padding of quantized values that is read in float."""

from __future__ import annotations

from torch.fx import GraphModule, Node

from pt2q.ir import ops
from pt2q.ir.emit import Emitter
from pt2q.ir.graph import value_of
from pt2q.ir.qparams import PER_TENSOR, read_qparams, write_dequantize, write_quantize

PASS_NAME = "pt2q.executorch_pads"


def round_pads(model: GraphModule) -> bool:
    """Quantize what zeros were added to, as the values that they were added to are.

    That changes no value. ExecuTorch pads what stands behind a dequantize in integers, and forgets
    to give them back as numbers where no quantize follows: its runtime refuses the program.

    Args:
        model: a converted module; changed in place.

    Returns:
        Whether there were any.
    """
    found = [node for node in model.graph.nodes if _is_read_in_float(node)]
    emit = Emitter(model, PASS_NAME)
    for node in found:
        readers = list(node.users)
        params = read_qparams(ops.data_input(node))
        stored = write_quantize(emit.after(node), node, params)
        real = write_dequantize(emit, stored, params, value_of(node))
        for reader in readers:
            reader.replace_input_with(node, real)
    if found:
        model.recompile()
    return bool(found)


def _is_read_in_float(node: Node) -> bool:
    """Whether it adds zeros to what has just been dequantized, and no integers are made of it."""
    quantize, dequantize = PER_TENSOR
    if not ops.is_op(node, ops.PAD) or ops.data_input(node).target is not dequantize:
        return False
    constant = not ops.has_argument(node, "mode") or ops.argument(node, "mode") == "constant"
    grows = all(isinstance(size, Node) or size >= 0 for size in ops.argument(node, "pad"))
    quantized = any(user.target is quantize for user in node.users)
    return constant and not ops.argument(node, "value") and grows and not quantized
