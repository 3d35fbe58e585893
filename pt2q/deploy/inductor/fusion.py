"""Which quantized operators Inductor runs as oneDNN int8 kernels.

After its pattern passes, Inductor's graph calls a kernel of oneDNN for every fused operator. Its
weight is packed by then, but the weight's scales are those of the converted graph: they tell which
operator it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from pt2q.ir import ops
from pt2q.ir.graph import get_constant, is_constant, module_path

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
_DEQUANTIZE_STATIC = frozenset({ops.qd.dequantize_per_tensor.default})
_PER_TOKEN = frozenset({ops.qd.dequantize_per_token.default})
_PER_GROUP = frozenset({ops.qd.dequantize_per_channel_group.default})


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


@dataclass(frozen=True)
class FusionRow:
    """What became of one quantized operator.

    Args:
        node: its name in the converted graph.
        module: the qualified name of its module, "" for the root.
        operator: its target.
        computes: it is a convolution or a matrix product, which gains from an int8 kernel; the
            others are elementwise or move values, and Inductor generates loops for them.
        kernel: the kernel that runs it, or "" where a float kernel does.
        detail: what is fused with it, or why it is not an int8 kernel.
    """

    node: str
    module: str
    operator: str
    computes: bool
    kernel: str
    detail: str


@dataclass(frozen=True)
class FusionReport:
    """The quantized operators of a converted model, in the order of its graph."""

    rows: tuple[FusionRow, ...]

    @property
    def fused(self) -> tuple[FusionRow, ...]:
        """Convolutions and matrix products that run as int8 kernels."""
        return tuple(row for row in self.rows if row.computes and row.kernel)

    @property
    def not_fused(self) -> tuple[FusionRow, ...]:
        """Quantized convolutions and matrix products that compute in float all the same."""
        return tuple(row for row in self.rows if row.computes and not row.kernel)

    def __getitem__(self, node: str) -> FusionRow:
        """The row of a node of the converted graph.

        Raises:
            KeyError: the node is not quantized.
        """
        for row in self.rows:
            if row.node == node:
                return row
        raise KeyError(f"no quantized operator {node!r} among {len(self.rows)}")

    def __iter__(self) -> Iterator[FusionRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        """A count, then a line for each operator left in float and each kind of fusion."""
        total = len(self.fused) + len(self.not_fused)
        lines = [f"{len(self.fused)} of {total} convolutions and matrix products are int8 kernels"]
        kinds = Counter(f"{row.kernel} {row.detail}".strip() for row in self.fused)
        lines += [f"  {count:4d} x {kind}" for kind, count in kinds.most_common()]
        lines += [f"  float: {row.node} ({row.operator}): {row.detail}" for row in self.not_fused]
        return "\n".join(lines)


# ------------------------------------------------------------------ Inductor's graph


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


# ------------------------------------------------------------------ the report


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
    if node.op != "call_function" or ops.is_op(node, ops.DEQUANTIZE | ops.QUANTIZE):
        return False
    return any(ops.is_op(source, ops.DEQUANTIZE) for source in node.all_input_nodes)


def _key(scales: Tensor | None) -> bytes | None:
    return None if scales is None else scales.detach().float().cpu().numpy().tobytes()


def _rows(
    model: GraphModule, node: Node, waiting: dict[bytes | None, list[KernelCall]]
) -> dict[Node, FusionRow]:
    if not ops.is_op(node, _COMPUTE):
        return {node: _row(node, False, GENERATED, "")}
    dequantize = _weight_dequantize(node)
    scales = _scales(model, dequantize)
    calls = waiting.get(_key(scales), []) if scales is not None else []
    if not calls:
        return {node: _row(node, True, "", _why_float(node, dequantize))}
    call = calls.pop(0)
    words = [*call.post_ops, f"writes {str(call.output).removeprefix('torch.')}"]
    rows = {node: _row(node, True, call.kernel, ", ".join(words))}
    follower = _residual(node) if {"sum", "add"} & set(call.post_ops) else None
    if follower is not None and _reads_dequantized(follower):
        rows[follower] = _row(follower, False, call.kernel, f"fused into {node.name}")
    return rows


def _row(node: Node, computes: bool, kernel: str, detail: str) -> FusionRow:
    return FusionRow(node.name, module_path(node), str(node.target), computes, kernel, detail)


def _weight_dequantize(node: Node) -> Node | None:
    """The dequantize of a constant weight."""
    name = next((n for n in ("weight", "mat2", "other") if ops.has_argument(node, n)), None)
    found = ops.argument(node, name) if name is not None else None
    if not isinstance(found, Node) or not ops.is_op(found, ops.DEQUANTIZE):
        return None
    source = ops.data_input(found)
    if ops.is_op(source, ops.QUANTIZE):  # converted with fold_quantize=False
        source = ops.data_input(source)
    return found if is_constant(source) else None


def _scales(model: GraphModule, dequantize: Node | None) -> Tensor | None:
    if dequantize is None or not ops.has_argument(dequantize, "scales"):
        return None
    scales = ops.argument(dequantize, "scales")
    return get_constant(model, scales) if is_constant(scales) else None


def _residual(node: Node) -> Node | None:
    """The addition that takes what a convolution or linear layer gives."""
    return next((user for user in node.users if ops.is_op(user, ops.ADD)), None)


_REASONS = (
    (ops.CONV_TRANSPOSE, "Inductor has no int8 transposed convolution"),
    (ops.CONV3D, "Inductor has no int8 3d convolution"),
)


def _why_float(node: Node, weight: Node | None) -> str:
    for targets, reason in _REASONS:
        if ops.is_op(node, targets):
            return reason
    if weight is None:
        return "both factors are computed: Inductor multiplies two activations in float"
    if ops.is_op(weight, _PER_GROUP):
        return "Inductor has no int8 kernel for weights in groups"
    if ops.argument(weight, "dtype") is not torch.int8:
        return f"its weight is {str(ops.argument(weight, 'dtype')).removeprefix('torch.')}"
    return _why_shape(node) or _why_input(_input_dequantize(node), ops.is_op(node, ops.CONV))


SMALL = 16
"""Inductor writes a product of one row with a matrix of at most this size as a sum."""


def _why_shape(node: Node) -> str:
    value, result = node.all_input_nodes[0].meta.get("val"), node.meta.get("val")
    if not ops.is_op(node, ops.LINEAR) or value is None or result is None:
        return ""
    if value.dim() < 2:
        return "its input has no batch dimension"
    sizes = (value.shape[-1], result.shape[-1])
    one_row = all(size == 1 for size in value.shape[:-1])
    if one_row and all(isinstance(size, int) and size <= SMALL for size in sizes):
        return "one row times so small a weight: Inductor writes it as a sum, without a kernel"
    return ""


def _input_dequantize(node: Node) -> Node | None:
    name = next(n for n in ("input", "mat1", "self") if ops.has_argument(node, n))
    source = ops.argument(node, name)
    return source if ops.is_op(source, ops.DEQUANTIZE) else None


def _why_input(dequantize: Node | None, is_conv: bool) -> str:
    if dequantize is None:
        return "its input is in float: only its weight is quantized"
    if ops.is_op(dequantize, _PER_TOKEN):
        return "its input is quantized per token; Inductor's kernels take one scale per tensor"
    if is_conv and not ops.is_op(dequantize, _DEQUANTIZE_STATIC):
        return "Inductor quantizes no convolution dynamically"
    return (
        "none of Inductor's patterns matched; X86InductorQuantizer quantizes as they want it, for "
        "the shapes that the model was exported with"
    )
