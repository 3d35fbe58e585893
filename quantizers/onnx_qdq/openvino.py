"""OpenVINO: ONNX Runtime's table, without what OpenVINO's transformations get wrong.

Measured in OpenVINO 2026.4 on processors: behind a maximum or minimum along dimensions it rounds
before it takes it, with steps of its own; and a linear layer behind a concatenation along another
than the last dimension does not compile, as steps per slice reach the product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from torch.fx import Node

from pt2q.ir import ops
from pt2q.ir.graph import value_of
from pt2q.quantizers.onnx_qdq.onnxruntime import ONNXRUNTIME
from pt2q.quantizers.toolkit import reasons
from pt2q.quantizers.toolkit.reasons import Reason
from pt2q.quantizers.toolkit.table.rule import Match, Rule

KERNELS = {
    "convolution": ("Convolution",),
    "convolution in training": ("Convolution",),
    "linear": ("FullyConnected",),
    "concatenation": ("Concatenation",),
    "average": ("Pooling",),
    "mean": ("Reduce",),
}
"""What OpenVINO computes in integers, by the rows of ONNX Runtime's table; the rest in float."""

_WEIGHTED = ("convolution", "convolution in training", "transposed convolution", "linear")
_SCALED = ops.ADD | ops.SUB | ops.RSUB | ops.MUL | ops.DIV | ops.NEG
_JOINS = ops.CAT | ops.STACK
_ELEMENTWISE = ops.POINTWISE | ops.CLAMP_LIKE | ops.DROPOUT | _SCALED


def takes_no_extreme(match: Match) -> Reason | None:
    """What it reads is no maximum or minimum, moved or changed one by one."""
    passed = ops.MOVES | _JOINS | _ELEMENTWISE | {ops.GETITEM}
    found = _behind(match, ops.EXTREME | ops.EXTREME_WITH_INDEX, passed)
    return None if found is None else reasons.BEHIND_EXTREME.filled(node=found.name)


def takes_no_joined_rows(match: Match) -> Reason | None:
    """What it reads is not joined, or rolled, along another than the last dimension."""
    passed = ops.MOVES | ops.DROPOUT | _SCALED
    found = _behind(match, _JOINS | ops.ROLL, passed, lambda node: not _joins_last(node))
    return None if found is None else reasons.BEHIND_JOINED_ROWS.filled(node=found.name)


def _behind(
    match: Match,
    wanted: frozenset[ops.Target],
    passed: frozenset[ops.Target],
    which: Callable[[Node], bool] = lambda node: True,
) -> Node | None:
    """The first of some operators that values come from, through others that pass them on."""
    waiting, seen = list(match.activations), set[Node]()
    while waiting:
        node = waiting.pop()
        if ops.is_op(node, wanted) and which(node):
            return node
        if node not in seen and ops.is_op(node, passed | wanted):
            seen.add(node)
            waiting += _sources(node)
    return None


def _sources(node: Node) -> Iterator[Node]:
    """What a node passes on: nothing where it combines two computed tensors."""
    sources = [n for n in node.all_input_nodes if n.op == "call_function"]
    if len(sources) < 2 or ops.is_op(node, _JOINS):
        yield from sources


def _joins_last(node: Node) -> bool:
    value = value_of(node)
    dims = ops.argument(node, "dims" if ops.has_argument(node, "dims") else "dim")
    every = dims if isinstance(dims, list | tuple) else [dims]
    return all(dim % value.dim() == value.dim() - 1 for dim in every)


def _for_openvino(rule: Rule) -> Rule:
    assert rule.kernel is not None
    checks = rule.checks
    if rule.name in _WEIGHTED:
        checks = (*checks, takes_no_extreme)
    if rule.name == "linear":
        checks = (*checks, takes_no_joined_rows)
    kernel = replace(rule.kernel, names=KERNELS.get(rule.name, ()))
    return replace(rule, kernel=kernel, checks=checks)


OPENVINO = replace(
    ONNXRUNTIME, runtime="OpenVINO", rules=tuple(map(_for_openvino, ONNXRUNTIME.rules))
)
