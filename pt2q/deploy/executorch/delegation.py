"""Who runs what in a lowered program: the delegate or portable kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch.fx import GraphModule, Node

from pt2q.ir import ops
from pt2q.ir.torch_private import OpOverload

# Compute that XNNPACK has int8 kernels for; one of these left to a portable kernel between
# a dequantize and a quantize runs in float and is slower than the float program.
_INT8_COMPUTE = (
    ops.CONV
    | ops.CONV_GENERIC
    | ops.LINEAR
    | ops.ADDMM
    | ops.MM
    | ops.BMM
    | ops.ADD
    | ops.SUB
    | ops.MUL
    | ops.CAT
)
_QUANTIZATION = ops.QUANTIZE | ops.DEQUANTIZE | ops.CHOOSE_QPARAMS


@dataclass(frozen=True)
class Delegation:
    """Who runs what in a lowered program.

    Attributes:
        delegated: number of operators given to XNNPACK, without the quantizes and dequantizes
            that it absorbs, so that a float and an int8 program compare.
        blobs: number of delegated subgraphs they are packed into.
        portable: (operator, count) of what portable kernels run, most frequent first.
        quantized_left: names of quantized compute operators that were not delegated.
    """

    delegated: int
    blobs: int
    portable: tuple[tuple[str, int], ...]
    quantized_left: tuple[str, ...]

    @property
    def left(self) -> int:
        """Number of operators that portable kernels run."""
        return sum(count for _, count in self.portable)

    def __str__(self) -> str:
        """A few lines for a terminal."""
        total = self.delegated + self.left
        lines = [f"{self.delegated} of {total} operators in {self.blobs} XNNPACK blob(s)"]
        lines += [f"  portable: {count:4d} x {name}" for name, count in self.portable]
        lines += [f"  quantized but not delegated: {name}" for name in self.quantized_left]
        return "\n".join(lines)


def delegation_of(module: GraphModule) -> Delegation:
    """Read the delegation off a partitioned graph in the edge dialect, before it is packed."""
    lowered = _lowered_modules(module)
    inside = [n for blob in lowered.values() for n in blob.original_module.graph.nodes]
    delegated = sum(_is_operator(n) and _overload(n) not in _QUANTIZATION for n in inside)
    left = [node for node in module.graph.nodes if _is_operator(node) and not _calls(node, lowered)]
    counts = Counter(_operator_name(node) for node in left)
    names = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    quantized = tuple(node.name for node in left if _is_quantized_compute(node))
    return Delegation(delegated, len(lowered), tuple(names), quantized)


def delegation_of_all(found: Mapping[str, Delegation]) -> Delegation:
    """The delegation of several methods together.

    Args:
        found: of each method, by name; names of operators get it in front if there are several.
    """
    if len(found) == 1:
        return next(iter(found.values()))
    counts: Counter[str] = Counter()
    for one in found.values():
        counts.update(dict(one.portable))
    return Delegation(
        sum(one.delegated for one in found.values()),
        sum(one.blobs for one in found.values()),
        tuple(sorted(counts.items(), key=lambda item: (-item[1], item[0]))),
        tuple(f"{method}.{name}" for method, one in found.items() for name in one.quantized_left),
    )


def _lowered_modules(module: GraphModule) -> dict[str, Any]:
    named = {n.name: getattr(module, str(n.target), None) for n in module.graph.nodes}
    return {name: value for name, value in named.items() if hasattr(value, "original_module")}


def _is_operator(node: Node) -> bool:
    return node.op == "call_function" and node.target is not ops.GETITEM


def _calls(node: Node, lowered: Mapping[str, Any]) -> bool:
    return any(source.name in lowered for source in node.all_input_nodes)


def _overload(node: Node) -> Any:
    """The ATen overload behind a node; the edge dialect wraps overloads in a class of its own."""
    wrapped = getattr(node.target, "_op", None)
    return wrapped if isinstance(wrapped, OpOverload) else node.target


def _operator_name(node: Node) -> str:
    target = _overload(node)
    return str(target) if isinstance(target, OpOverload) else str(node.target)


def _is_quantized_compute(node: Node) -> bool:
    if _overload(node) not in _INT8_COMPUTE:
        return False
    dequantized = sum(_overload(source) in ops.DEQUANTIZE for source in node.all_input_nodes)
    quantized = any(_overload(user) in ops.QUANTIZE for user in node.users)
    return dequantized >= 2 or (dequantized == 1 and quantized)
