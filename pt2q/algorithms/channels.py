"""Where the channels of a value go: which layers read each, and who else does.

A factor per channel can be taken out of a value and put into the layers that read it, if all that
lies between hands it on: ``f(s x) = s f(x)`` for every positive ``s`` of a channel. To find that
out, every element is labelled with its channel, and the labels are sent through the graph:
operators that move elements move labels, a product with something else keeps them, and so on. What
reads a label and is neither such an operator nor a layer has to find the channel as it was.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from pt2q.algorithms.engine import Schedule
from pt2q.algorithms.layers import Use
from pt2q.ir import ops
from pt2q.ir.graph import is_observer_call, value_of

NONE = -1.0
"""The label of what is no channel of the value."""


@dataclass
class Reach:
    """Where the channels of a value go.

    Args:
        count: how many channels there are.
        consumers: the calls of layers that read them, with the channel of each input.
        foreign: the channels that something else reads, with the names of who does.
        between: the nodes that hand them on, the value's own first.
    """

    count: int
    consumers: dict[Use, Tensor] = field(default_factory=dict)
    foreign: dict[int, str] = field(default_factory=dict)
    between: list[Node] = field(default_factory=list)

    @property
    def free(self) -> Tensor:
        """Whether each channel may be scaled: layers read it, and nobody else."""
        found = torch.zeros(self.count, dtype=torch.bool)
        for labels in self.consumers.values():
            found[labels[labels >= 0].long()] = True
        if self.foreign:
            found[list(self.foreign)] = False
        return found


def reach_of(
    owner: GraphModule,
    schedule: Schedule,
    nodes: Sequence[Node],
    axis: int,
    uses: Mapping[Node, Use],
) -> Reach:
    """Follow the channels of values through their graph, no farther than they go.

    Args:
        owner: the module whose graph it is in.
        schedule: of that graph.
        nodes: the values, of which channels of one number are scaled alike.
        axis: the dimension of their channels.
        uses: the layers' calls in that graph, by node.
    """
    shapes = [_shape(node) for node in nodes]
    assert shapes[0] is not None
    count = shapes[0][axis]
    label = torch.arange(count, dtype=torch.float32)
    walker = _Labels(owner, schedule, uses, Reach(count))
    for node, shape in zip(nodes, shapes, strict=True):
        assert shape is not None
        beside = [-1 if d == axis % len(shape) else 1 for d in range(len(shape))]
        walker.add(node, label.reshape(beside).expand(shape))
    while walker.waiting:
        walker.visit(heapq.heappop(walker.waiting)[1])
    return walker.reach


class _Labels:
    """One pass over a graph with the labels seen so far."""

    def __init__(
        self, owner: GraphModule, schedule: Schedule, uses: Mapping[Node, Use], reach: Reach
    ) -> None:
        self.owner = owner
        self.schedule = schedule
        self.uses = uses
        self.reach = reach
        self.labels: dict[Node, Any] = {}
        self.waiting: list[tuple[int, Node]] = []

    def add(self, node: Node, label: Any) -> None:
        """Label a node that hands channels on; its readers wait to be visited, in order."""
        self.labels[node] = label
        self.reach.between.append(node)
        for user in node.users:
            entry = (self.schedule.position[user], user)
            if entry not in self.waiting:
                heapq.heappush(self.waiting, entry)

    def visit(self, node: Node) -> None:
        read = [n for n in node.all_input_nodes if n in self.labels]
        if ops.is_op(node, ops.SIZE):
            return
        use = self.uses.get(node)
        if use is not None and read == [use.x]:
            channels = input_channels(use, self.labels[use.x])
            if channels is not None:
                self.reach.consumers[use] = channels
                return
        elif use is None:
            found = self._handed_on(node, read)
            if found is not None:
                self.add(node, found)
                return
        self._keep_as_is(node, read)

    def _keep_as_is(self, node: Node, read: Iterable[Node]) -> None:
        found = torch.zeros(self.reach.count + 1, dtype=torch.bool)
        for n in read:
            for leaf in _leaves(self.labels[n]):
                found[leaf.reshape(-1).long()] = True  # the last stands for what is no channel
        for label in found[:-1].nonzero().flatten().tolist():
            self.reach.foreign.setdefault(label, node.name)

    def _handed_on(self, node: Node, read: list[Node]) -> Any:
        """The labels of what a node gives, or None if it does more than hand them on."""
        if is_observer_call(self.owner, node):
            return self.labels[read[0]]
        for kinds, rule in _RULES:
            if ops.is_op(node, kinds):
                return rule(node, read, self.labels)
        return None


def _leaves(label: Any) -> list[Tensor]:
    return list(label) if isinstance(label, list | tuple) else [label]


def _shape(node: Node) -> tuple[int, ...] | None:
    value = value_of(node)
    return tuple(map(_number, value.shape)) if isinstance(value, Tensor) else None


def _number(size: Any) -> int:
    """A size as it was when the model was exported."""
    return size if isinstance(size, int) else int(size.node.hint)


def input_channels(use: Use, label: Tensor) -> Tensor | None:
    """The label of each input channel of a layer, or None where one has several.

    Args:
        use: the layer's call.
        label: of each element that it reads.
    """
    convolution = ops.is_op(use.node, ops.CONV | ops.CONV_GENERIC)
    spatial = value_of(ops.argument(use.node, "weight")).dim() - 2 if convolution else 0
    return _along(label, label.dim() - 1 - spatial)


def _along(label: Tensor, axis: int) -> Tensor | None:
    """The labels along an axis, if they are the same everywhere else."""
    flat = label.movedim(axis, 0).reshape(label.shape[axis], -1)
    first = flat[:, 0]
    return first if bool((flat == first[:, None]).all()) else None


# ------------------------------------------------------------------ what hands labels on

Labels = Mapping[Node, Any]
Rule = Callable[[Node, list[Node], Labels], Any]


def _same(node: Node, read: list[Node], labels: Labels) -> Any:
    return labels[read[0]] if node.args and node.args[0] is read[0] and len(read) == 1 else None


def _moved(node: Node, read: list[Node], labels: Labels) -> Any:
    """Run the operator on the labels; sizes that are computed are what they were at export."""
    values = {n: labels.get(n, value_of(n)) for n in node.all_input_nodes}
    if any(isinstance(v, Tensor) for n, v in values.items() if n not in labels):
        return None

    def given(n: Node) -> Any:
        return values[n] if n in labels else _number(values[n])

    args, kwargs = map_arg((node.args, node.kwargs), given)
    found = node.target(*args, **kwargs)  # type: ignore[operator]
    return list(found) if isinstance(found, tuple) else found


def _joined(node: Node, read: list[Node], labels: Labels) -> Any:
    parts = [labels.get(n) for n in node.all_input_nodes]
    shapes = [_shape(n) for n in node.all_input_nodes]
    filled = {
        n: torch.full(shape, NONE) if part is None and shape is not None else part
        for n, part, shape in zip(node.all_input_nodes, parts, shapes, strict=True)
    }
    args, kwargs = map_arg((node.args, node.kwargs), filled.__getitem__)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _multiplied(node: Node, read: list[Node], labels: Labels) -> Any:
    """A product with what carries no label; the result's labels are those of the one that does."""
    shape = _shape(node)
    if len(read) != 1 or shape is None or node.args.count(read[0]) != 1:
        return None
    if ops.is_op(node, ops.DIV) and node.args[0] is not read[0]:
        return None
    return labels[read[0]].expand(shape)


def _mixed(node: Node, read: list[Node], labels: Labels) -> Any:
    """``p @ v`` with labels in ``v``: each result is a sum over one channel."""
    second, shape = node.args[1], _shape(node)
    if read != [second] or shape is None:
        return None
    return _without(labels[read[0]], [-2], shape)


def _attended(node: Node, read: list[Node], labels: Labels) -> Any:
    shape = _shape(node)
    if read != [ops.argument(node, "value")] or shape is None:
        return None
    return _without(labels[read[0]], [-2], shape)


def _pooled(dims: int) -> Rule:
    def rule(node: Node, read: list[Node], labels: Labels) -> Any:
        shape = _shape(node)
        return None if shape is None else _without(labels[read[0]], list(range(-dims, 0)), shape)

    return rule


def _averaged(node: Node, read: list[Node], labels: Labels) -> Any:
    shape, dims = _shape(node), ops.argument(node, "dim") if ops.has_argument(node, "dim") else None
    if shape is None or not dims:
        return None
    return _without(labels[read[0]], list(dims), shape)


def _without(label: Tensor, dims: list[int], shape: tuple[int, ...]) -> Tensor | None:
    """Labels of what combines elements along some dimensions, which must not differ along them."""
    least, greatest = label.amin(dims, keepdim=True), label.amax(dims, keepdim=True)
    if not torch.equal(least, greatest):
        return None
    if len(shape) < label.dim():
        least = label.amin(dims)
    return least.expand(shape)


_POOLS = {
    1: ops.AVG_POOL1D | ops.MAX_POOL1D,
    2: ops.AVG_POOL2D | ops.MAX_POOL2D | ops.ADAPTIVE_AVG_POOL2D,
    3: ops.AVG_POOL3D,
}
_RULES: tuple[tuple[frozenset[Any], Rule], ...] = (
    (ops.HOMOGENEOUS | ops.DROPOUT, _same),
    (ops.SHAPE | ops.UPSAMPLE_NEAREST | frozenset({ops.GETITEM}), _moved),
    (ops.CAT, _joined),
    (ops.MUL | ops.DIV, _multiplied),
    (ops.MATMUL | ops.BMM, _mixed),
    (ops.SDPA, _attended),
    *((kinds, _pooled(dims)) for dims, kinds in _POOLS.items()),
    (ops.MEAN, _averaged),
)
