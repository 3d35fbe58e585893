"""What quantization did to each weight."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from pt2q.debug.identity import Origin, value_nodes
from pt2q.debug.rounding import is_rounding_module
from pt2q.debug.stats import Error, Running, mismatch
from pt2q.ir import ops
from pt2q.ir.constants import Constants
from pt2q.ir.control_flow import named_graph_modules
from pt2q.ir.graph import get_constant, origin_name
from pt2q.ir.module import QuantGraphModule, copy_module, deferred_code
from pt2q.passes.base import run_passes
from pt2q.passes.batch_norm.fold import FoldConvBatchNorm


@dataclass(frozen=True)
class WeightRow:
    """One quantized constant against the float one.

    Args:
        name: of the constant, in the quantized model.
        argument: as which its operator reads it, such as ``weight``.
        error: the quantized against the float constant (with its batch norm folded in, where the
            quantized model has folded it).
    """

    name: str
    argument: str
    error: Error


@dataclass(frozen=True)
class FoundWeight:
    """A quantized constant and who reads it.

    Args:
        path: of the body.
        node: the reader, in the quantized model.
        name: of the constant, with its path.
        row: its error, or None.
        reason: why there is no error, or "".
    """

    path: str
    node: Node
    name: str
    row: WeightRow | None
    reason: str = ""


@dataclass(frozen=True)
class _Stored:
    """A quantized constant: its name, and its value in float.

    Args:
        target: the name.
        read: as the operator reads it.
        plain: as it is behind the dequantize.
        is_scaled: whether the rounded weight has its batch norm in it, as in training.
    """

    target: str
    read: Tensor
    plain: Tensor
    is_scaled: bool = False


def quantized_weights(
    floating: QuantGraphModule, quantized: QuantGraphModule
) -> Iterator[FoundWeight]:
    """Every quantized constant that an operator reads, beside its float one.

    Args:
        floating, quantized: what `own_copy` gave.
    """
    with deferred_code():
        folded = run_passes(copy_module(floating), [FoldConvBatchNorm()])
    plain, scaled = _Floats(floating), _Floats(folded)
    for path, module in named_graph_modules(quantized):
        assert isinstance(module, QuantGraphModule)
        constants = Constants(module)
        for node in [n for n in module.graph.nodes if n.op == "call_function"]:
            for name, argument in ops.tensor_arguments(node):
                if ops.is_op(node, ops.DEQUANTIZE | ops.QUANTIZE):
                    continue
                stored = _stored(module, constants, argument)
                if stored is not None:
                    yield _compare(path, node, name, stored, plain, scaled)


def _compare(
    path: str, node: Node, name: str, stored: _Stored, plain: _Floats, scaled: _Floats
) -> FoundWeight:
    called = path + stored.target
    is_folded = stored.is_scaled or plain.is_batch_norm(path, node)
    reference, value = (scaled if is_folded else plain).find(path, node, name, stored)
    running = Running()
    if reference is None or running.add(reference, value):
        reason = f"{called}: the float model has no constant of its name and shape"
        return FoundWeight(path, node, called, None, reason)
    error = running.result()
    row = None if error is None else WeightRow(called, name, error)
    return FoundWeight(path, node, called, row)


def _stored(module: GraphModule, constants: Constants, node: Node) -> _Stored | None:
    """What is read through a dequantize or a fake quantizer, if it is a constant."""
    chain = list(_chain(node))
    root = chain[-1]
    if root.op != "get_attr":
        return None
    if is_rounding_module(module, node):
        before = [n for n in _ancestors(node) if n.op == "placeholder"]
        if before:
            return None
        value = _evaluate(module, node)
        return _Stored(str(root.target), value, value, node.args[0] is not root)
    back = next((n for n in chain if ops.is_op(n, ops.DEQUANTIZE)), None)
    if back is None or not constants.is_constant(node):
        return None
    return _Stored(str(root.target), constants.value(node), constants.value(back))


class _Floats:
    """The constants of a float model, by who reads them and by name."""

    def __init__(self, model: QuantGraphModule) -> None:
        self._modules = dict(named_graph_modules(model))
        self._constants = {
            path: Constants(module)
            for path, module in self._modules.items()
            if isinstance(module, QuantGraphModule)
        }
        self._nodes = {key: place for place, key in value_nodes(model).items()}

    def is_batch_norm(self, path: str, node: Node) -> bool:
        """Whether a node of the quantized model gives the value of a batch norm here."""
        place = self._nodes.get(Origin(origin_name(node), path))
        return place is not None and ops.is_op(place[1], ops.BATCH_NORM_ANY)

    def find(
        self, path: str, node: Node, name: str, stored: _Stored
    ) -> tuple[Tensor | None, Tensor]:
        """The float constant, and the form of the quantized one that it is to be held against."""
        found = self._argument(path, node, name)
        if found is not None and not mismatch(found, stored.read):
            return found, stored.read
        try:
            target = stored.target.removesuffix("_quantized")
            return get_constant(self._modules[path], target).detach(), stored.plain
        except (AttributeError, KeyError, TypeError):
            return None, stored.plain

    def _argument(self, path: str, node: Node, name: str) -> Tensor | None:
        place = self._nodes.get(Origin(origin_name(node), path))
        if place is None or place[1].target != node.target:
            return None
        found = dict(ops.tensor_arguments(place[1])).get(name)
        if found is None or not self._constants[place[0]].is_constant(found):
            return None
        value = self._constants[place[0]].value(found)
        return value if isinstance(value, Tensor) else None


def _chain(node: Node) -> Iterator[Node]:
    """A node and what it was made of, by first inputs."""
    seen: set[Node] = set()
    while node not in seen:
        seen.add(node)
        yield node
        if node.op == "get_attr" or not node.all_input_nodes:
            return
        node = node.all_input_nodes[0]


def _ancestors(node: Node) -> list[Node]:
    """What a node is computed from, in the order of the graph, and the node."""
    waiting, seen = [node], {node}
    while waiting:
        for read in waiting.pop().all_input_nodes:
            if read not in seen:
                seen.add(read)
                waiting.append(read)
    return sorted(seen)


def _evaluate(module: GraphModule, node: Node) -> Tensor:
    """The value of a node that no input of the graph has a part in."""
    values: dict[Node, Any] = {}
    with torch.no_grad():
        for at in _ancestors(node):
            args, kwargs = map_arg((at.args, at.kwargs), values.__getitem__)
            if at.op == "get_attr":
                values[at] = get_constant(module, at).detach()
            elif at.op == "call_module":
                values[at] = module.get_submodule(str(at.target))(*args, **kwargs)
            else:
                values[at] = at.target(*args, **kwargs)  # type: ignore[operator]
    found: Tensor = values[node]
    return found
