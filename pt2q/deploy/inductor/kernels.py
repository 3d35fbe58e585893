"""Which quantized operators Inductor runs as oneDNN int8 kernels.

After its pattern passes, Inductor's graph calls a kernel of oneDNN for every fused operator. Its
weight is packed by then, but the weight's scales are those of the converted graph: they tell which
operator it was.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from pt2q.deploy.inductor.bfloat16 import dequantize_behind
from pt2q.deploy.inductor.float_reasons import weight_dequantize, why_float
from pt2q.deploy.inductor.fusion import FusionReport, FusionRow
from pt2q.ir import ops
from pt2q.ir.graph import get_constant, is_constant, module_path
from pt2q.ir.qparams import read_qparams

QCONV = "onednn.qconv"
QLINEAR = "onednn.qlinear"
GENERATED = "generated code"

_LOWERINGS = {
    "qconv": QCONV,
    "qconv_binary": QCONV,
    "qlinear": QLINEAR,
    "qlinear_binary": QLINEAR,
}
_COMPUTE = ops.CONV | ops.LINEAR | ops.ADDMM | ops.MM | ops.BMM | ops.MATMUL | ops.SDPA


@dataclass(frozen=True)
class KernelCall:
    """One call of an int8 kernel in Inductor's graph.

    Args:
        kernel: ``onednn.qconv`` or ``onednn.qlinear``.
        scales: the scales of its weight, or None if they are no constant there.
        post_ops: what runs inside the kernel after the product: ``relu``, ``sum``, ...
        output: the dtype it writes.
    """

    kernel: str
    scales: Tensor | None = field(repr=False, compare=False)
    post_ops: tuple[str, ...]
    output: torch.dtype


def kernel_calls(graph: Graph) -> tuple[KernelCall, ...]:
    """Read the int8 kernels off Inductor's graph.

    Args:
        graph: after its pattern passes; fused nodes have a lowering function as their target.
    """
    return tuple(call for node in graph.nodes if (call := _kernel_call(node)) is not None)


def _kernel_call(node: Node) -> KernelCall | None:
    function = getattr(node.target, "func", None)  # a functools.partial
    kernel = _LOWERINGS.get(getattr(function, "__name__", ""))
    if node.op != "call_function" or kernel is None:
        return None
    given = node.kwargs
    names = (given.get("binary_op_name"), given.get("unary_op_name"), given.get("postop_name"))
    post_ops = tuple(str(name) for name in names if name not in (None, "none"))
    output = given.get("output_dtype", torch.float32)
    assert isinstance(output, torch.dtype)
    return KernelCall(kernel, _constant(given.get("w_scale")), post_ops, output)


def _constant(node: Any) -> Tensor | None:
    owner = node.graph.owning_module if isinstance(node, Node) else None
    if not is_constant(node) or owner is None:
        return None
    return get_constant(owner, node)


def report_fusion(model: GraphModule, calls: tuple[KernelCall, ...]) -> FusionReport:
    """Match the kernels of Inductor's graph with the operators of the converted one.

    Args:
        model: the module that was compiled.
        calls: what `kernel_calls` found.
    """
    waiting: dict[bytes | None, list[KernelCall]] = {}
    for call in calls:
        waiting.setdefault(_key(call.scales), []).append(call)
    rows: dict[Node, FusionRow] = {}
    for node in model.graph.nodes:
        if _reads_dequantized(node) and node not in rows:
            rows.update(_rows(model, node, waiting))
    ordered = [rows[node] for node in model.graph.nodes if node in rows]
    return FusionReport(tuple(ordered))


def _reads_dequantized(node: Node) -> bool:
    if node.op != "call_function" or ops.is_op(node, ops.DEQUANTIZE | ops.QUANTIZE | ops.CASTS):
        return False
    return any(dequantize_behind(source) is not None for source in node.all_input_nodes)


def _key(scales: Tensor | None) -> bytes | None:
    return None if scales is None else scales.detach().float().cpu().numpy().tobytes()


def _rows(
    model: GraphModule, node: Node, waiting: dict[bytes | None, list[KernelCall]]
) -> dict[Node, FusionRow]:
    if not ops.is_op(node, _COMPUTE):
        return {node: _row(node, False, GENERATED, "")}
    dequantize = weight_dequantize(node)
    scales = _scales(model, dequantize)
    calls = waiting.get(_key(scales), []) if scales is not None else []
    if not calls:
        reason = why_float(node, dequantize)
        return {node: replace(_row(node, True, "", reason.text), reason=reason)}
    call = calls.pop(0)
    words = [*call.post_ops, f"writes {str(call.output).removeprefix('torch.')}"]
    rows = {node: _row(node, True, call.kernel, ", ".join(words))}
    follower = _residual(node) if {"sum", "add"} & set(call.post_ops) else None
    if follower is not None and _reads_dequantized(follower):
        rows[follower] = _row(follower, False, call.kernel, f"fused into {node.name}")
    return rows


def _row(node: Node, computes: bool, kernel: str, detail: str) -> FusionRow:
    return FusionRow(node.name, module_path(node), str(node.target), computes, kernel, detail)


def _scales(model: GraphModule, dequantize: Node | None) -> Tensor | None:
    scale = None if dequantize is None else read_qparams(dequantize).scale
    return get_constant(model, scale) if isinstance(scale, Node) and is_constant(scale) else None


def _residual(node: Node) -> Node | None:
    """The addition that takes what a convolution or linear layer gives."""
    return next((user for user in node.users if ops.is_op(user, ops.ADD)), None)
