"""What XNNPACK would compute wrongly, or not at all, and is refused."""

from __future__ import annotations

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Graph

from pt2q.errors import LoweringError
from pt2q.ir import ops
from pt2q.ir.control_flow import named_graph_modules

_FOR_OTHERS = {
    torch.uint8: "uint8 activations are for Inductor and ONNX Runtime",
    torch.int16: "16-bit activations are for ONNX Runtime and Arm's TOSA; in PyTorch what "
    "convert_pt2e gave computes them",
}


def refuse_other_types(graph: Graph) -> None:
    """Refuse a graph that is quantized to integers that XNNPACK has no kernels for.

    Args:
        graph: of an exported program.

    Raises:
        LoweringError: it is.
    """
    for node in graph.nodes:
        if not ops.is_op(node, ops.QUANTIZE | ops.DEQUANTIZE):
            continue
        for dtype, others in _FOR_OTHERS.items():
            if dtype in (*node.args, *node.kwargs.values()):
                name = str(dtype).removeprefix("torch.")
                raise LoweringError(
                    f"{node.name} is {name}, and XNNPACK computes in int8 alone. Quantize with "
                    f"XNNPACKQuantizer; {others}."
                )


def refuse_weight_only(graph: Graph) -> None:
    """Refuse products of a quantized weight with an input in float.

    XNNPACK's delegate takes such operators and computes something else, without an error.

    Args:
        graph: of an exported program.

    Raises:
        LoweringError: there is one.
    """
    for node in graph.nodes:
        if not ops.is_op(node, ops.CONV | ops.LINEAR):
            continue
        weight, source = ops.argument(node, "weight"), ops.argument(node, "input")
        if ops.is_op(weight, ops.DEQUANTIZE) and not ops.is_op(source, ops.DEQUANTIZE):
            raise LoweringError(
                f"{node.name} has a quantized weight and an input in float, which XNNPACK "
                "computes wrongly. Quantize its input too, at run time for instance: "
                "get_dynamic_activation_4bit_weight_config(), or "
                "get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)"
            )


def refuse_measured_constants(program: ExportedProgram) -> None:
    """Refuse activations that are measured at run time and are the same in every call.

    XNNPACK's delegate quantizes them once, from memory that it has not filled yet.

    Args:
        program: exported.

    Raises:
        LoweringError: there is one.
    """
    signature = program.graph_signature
    given = {s.arg.name for s in signature.input_specs if s.kind is InputKind.USER_INPUT}
    written = set(signature.buffers_to_mutate.values())
    varying = given | {n for n, name in signature.inputs_to_buffers.items() if name in written}
    for node in program.graph.nodes:
        if node.name in varying or any(source.name in varying for source in node.all_input_nodes):
            varying.add(node.name)
        elif ops.is_op(node, ops.CHOOSE_QPARAMS):
            raise LoweringError(
                f"{node.all_input_nodes[0].name} depends on no input of the model, and its range "
                "is measured at run time, which XNNPACK does wrongly. Leave what reads it in "
                "float, or compute it once before export"
            )


def why_not_grouped_scales(graph: Graph) -> str:
    """What to do about products with a constant whose rows have scales in groups.

    Args:
        graph: of a program that could not be lowered.

    Returns:
        The end of a sentence; "" if there is none.
    """
    group = ops.qd.dequantize_per_channel_group.default
    found = [
        user.name
        for node in graph.nodes
        if node.target is group
        for user in node.users
        if not ops.is_op(user, ops.LINEAR | ops.EMBEDDING)
    ]
    if not found:
        return ""
    return (
        f"; {found[0]} reads a constant whose rows have scales in groups, which ExecuTorch knows "
        "in linear layers and lookups alone. Give each row one scale: group_size=None"
    )


def why_not_bodies(program: ExportedProgram) -> str:
    """What to do about control flow, which XNNPACK's partitioner does not look into.

    Args:
        program: that could not be lowered.

    Returns:
        A sentence that names the bodies; "" if there is none.
    """
    found = [path.removesuffix(".") for path, _ in named_graph_modules(program.graph_module)]
    bodies = [path for path in found if path]
    if not bodies:
        return ""
    return (
        f"; it runs {', '.join(bodies)} by control flow, which XNNPACK's partitioner does not look "
        "into: what is quantized or linear in there has no kernel. Leave their modules in float, "
        "or lower each body as a method of its own and branch outside"
    )
