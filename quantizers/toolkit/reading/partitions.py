"""Find operators by the module or function that they were written as, one after the other.

Quantizers of this world are written in these terms: "a convolution, a batch norm, a relu". Export
records for every node the modules it was traced in (``nn_module_stack``) and the function that was
called (``torch_fn``, or ``source_fn_stack`` by strict export), also where an operator has since
been decomposed into several.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.fx.passes.utils.source_matcher_utils import SourcePartition
from torch.nn import functional as F

from pt2q.ir import ops

EQUIVALENT: tuple[frozenset[Any], ...] = (
    frozenset({nn.Conv1d, F.conv1d}),
    frozenset({nn.Conv2d, F.conv2d}),
    frozenset({nn.Conv3d, F.conv3d}),
    frozenset({nn.ConvTranspose1d, F.conv_transpose1d}),
    frozenset({nn.ConvTranspose2d, F.conv_transpose2d}),
    frozenset({nn.ConvTranspose3d, F.conv_transpose3d}),
    frozenset({nn.Linear, F.linear}),
    frozenset({nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, F.batch_norm}),
    frozenset({nn.LayerNorm, F.layer_norm}),
    frozenset({nn.ReLU, F.relu, F.relu_, torch.relu}),
    frozenset({nn.ReLU6, F.relu6}),
    frozenset({nn.Hardtanh, F.hardtanh, F.hardtanh_}),
    frozenset({nn.Hardswish, F.hardswish}),
    frozenset({nn.SiLU, F.silu}),
    frozenset({nn.GELU, F.gelu}),
    frozenset({nn.Sigmoid, F.sigmoid, torch.sigmoid}),
    frozenset({nn.Tanh, F.tanh, torch.tanh}),
    frozenset({nn.Softmax, F.softmax, torch.softmax}),
    frozenset({nn.MaxPool2d, F.max_pool2d}),
    frozenset({nn.AvgPool2d, F.avg_pool2d}),
    frozenset({nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d}),
    frozenset({nn.Embedding, F.embedding}),
    frozenset({nn.Dropout, F.dropout}),
    frozenset({torch.add, operator.add, operator.iadd}),
    frozenset({torch.sub, operator.sub, operator.isub}),
    frozenset({torch.mul, operator.mul, operator.imul}),
    frozenset({torch.matmul, operator.matmul}),
)
"""What counts as the same source, as a module or as a function, unless a user says otherwise."""

_in_force: list[frozenset[Any]] = list(EQUIVALENT)


def get_equivalent_types() -> list[set[Any]]:
    """What counts as the same source now: a copy, which may be changed and handed to
    `update_equivalent_types_dict`.
    """
    return [set(group) for group in _in_force]


def update_equivalent_types_dict(customized_equivalent_types: Iterable[Iterable[Any]]) -> None:
    """Say what counts as the same source from now on, in this process.

    Args:
        customized_equivalent_types: groups of module classes and functions; they replace all
            groups in force.

    Raises:
        ValueError: something in a group can be no source.
    """
    groups = [frozenset(group) for group in customized_equivalent_types or ()]
    _check([kind for group in groups for kind in group])
    _in_force[:] = groups


def find_sequential_partitions(
    gm: GraphModule,
    partition_types: Sequence[Any],
    include_functional_equivalent: bool = True,
    filter_fn: Callable[[Node], bool] | None = None,
) -> list[tuple[SourcePartition, ...]]:
    """Chains of partitions, each of which reads a result of the one before.

    Args:
        gm: an exported graph; bodies of control flow are asked for one by one.
        partition_types: module classes and functions, in order, such as
            ``[nn.Conv2d, nn.BatchNorm2d, F.relu]``. A type may occur several times.
        include_functional_equivalent: let a class also mean its function, and the reverse.
        filter_fn: leaves out partitions in which it is false for a node.

    Returns:
        One tuple per chain, in the order of the graph. The nodes of a partition are those of one
        call of the module or function; ``params`` are the constants that they read.

    Raises:
        ValueError: ``partition_types`` is empty or holds something that can be no source.
    """
    _check(partition_types)
    sources = _Sources(gm)
    columns = []
    for wanted in partition_types:
        found = sources.partitions(wanted, include_functional_equivalent)
        columns.append([p for p in found if filter_fn is None or all(map(filter_fn, p.nodes))])
    chains: list[tuple[SourcePartition, ...]] = [(first,) for first in columns[0]]
    for column in columns[1:]:
        readers: dict[Node, list[SourcePartition]] = {}
        for partition in column:
            for node in partition.input_nodes:
                readers.setdefault(node, []).append(partition)
        chains = [(*chain, later) for chain in chains for later in _following(chain[-1], readers)]
    return chains


def _check(partition_types: Sequence[Any]) -> None:
    wrong = [t for t in partition_types if not callable(t)]
    if wrong or not partition_types:
        raise ValueError(
            "partition_types must be module classes and functions, at least one; found "
            f"{wrong or list(partition_types)}"
        )


def _following(
    partition: SourcePartition, readers: dict[Node, list[SourcePartition]]
) -> list[SourcePartition]:
    found = [p for node in partition.output_nodes for p in readers.get(node, ())]
    return [p for i, p in enumerate(found) if all(p is not other for other in found[:i])]


class _Sources:
    """The calls of a graph by what they come from."""

    def __init__(self, gm: GraphModule) -> None:
        self._nodes = [n for n in gm.graph.nodes if n.op == "call_function"]

    def partitions(self, wanted: Any, equivalent: bool) -> list[SourcePartition]:
        """One partition per call of a source, in the order of the graph."""
        group = next((g for g in _in_force if wanted in g), None) if equivalent else None
        kinds = [wanted] if group is None else sorted(group, key=_name)
        classes = {_name(kind): kind for kind in kinds if isinstance(kind, type)}
        functions = [kind for kind in kinds if not isinstance(kind, type)]
        operators = {op: f for f in functions for op in _operators(f)}
        names = {f.__name__: f for f in functions if hasattr(f, "__name__")}
        found: dict[Any, tuple[Any, list[Node]]] = {}
        for node in self._nodes:
            call = _module_call(node, classes) or _function_call(node, operators, names)
            if call is not None:
                key, source = call
                found.setdefault(key, (source, []))[1].append(node)
        return [_partition(source, nodes) for source, nodes in found.values()]


def _name(kind: Any) -> str:
    if isinstance(kind, type):
        return f"{kind.__module__}.{kind.__qualname__}"
    return str(getattr(kind, "__name__", kind))


def _stack(node: Node) -> Iterator[tuple[str, str]]:
    """(call, class name) of the modules of a node, the innermost first.

    Each call of a module has a key of its own in the stack, such as ``block@1`` for the second.
    """
    stack = node.meta.get("nn_module_stack") or {}
    for call, (_, kind) in reversed(list(stack.items())):
        yield str(call), kind if isinstance(kind, str) else _name(kind)


def _module_call(node: Node, classes: dict[str, Any]) -> tuple[Any, Any] | None:
    for call, kind in _stack(node):
        if kind in classes:
            return ("module", call), classes[kind]
    return None


def _function_call(
    node: Node, operators: dict[Any, Any], names: dict[str, Any]
) -> tuple[Any, Any] | None:
    innermost = next(_stack(node), None)
    if innermost is not None and _is_leaf(innermost[1]):
        return None  # it is there as the module's
    for name, source in reversed(node.meta.get("source_fn_stack") or ()):
        if source in names.values():
            return ("source", name), source
    call, function = node.meta.get("torch_fn") or ("", "")
    short = function.rpartition(".")[2]
    if short in names:
        return ("function", call), names[short]
    return (("operator", node), operators[node.target]) if node.target in operators else None


def _is_leaf(kind: str) -> bool:
    return kind.startswith("torch.nn.modules.") and not kind.startswith(
        "torch.nn.modules.container"
    )


def _operators(function: Any) -> frozenset[Any]:
    name = getattr(function, "__name__", "")
    if getattr(function, "__module__", "") == "_operator" and name in _IN_PLACE:
        return ops.overloads(ops.operator_named(_IN_PLACE[name]))
    return ops.functional_operators(function)


_IN_PLACE = {"iadd": "add_", "isub": "sub_", "imul": "mul_"}


def _partition(source: Any, nodes: list[Node]) -> SourcePartition:
    inside = set(nodes)
    read = dict.fromkeys(n for node in nodes for n in node.all_input_nodes if n not in inside)
    return SourcePartition(
        nodes=nodes,
        source=source,
        input_nodes=[n for n in read if n.op != "get_attr"],
        output_nodes=[n for n in nodes if any(user not in inside for user in n.users)],
        params=[n for n in read if n.op == "get_attr"],
    )
