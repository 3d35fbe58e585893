"""A multiplication by ones before layers for which nothing else can take a factor."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.fx import Node

from pt2q.algorithms.layers import Use
from pt2q.ir import ops
from pt2q.ir.emit import Emitter
from pt2q.ir.graph import delete_constant, observed_value, value_of
from pt2q.ir.module import QuantGraphModule


@dataclass(frozen=True)
class Insertion:
    """One multiplication.

    Args:
        product: the call.
        constant: the name of what it multiplies by, a number for each channel.
        axis: the dimension of the channels, counted from the last.
        observer: the name of the observer behind it.
        moved: the layers' calls that read it, each with what it read before.
    """

    product: Node
    constant: str
    axis: int
    observer: str
    moved: tuple[tuple[Node, Node], ...]


def insert(model: QuantGraphModule, uses: Iterable[Use], axes: dict[Use, int]) -> list[Insertion]:
    """Write one multiplication for all layers that read a value alike.

    Args:
        model: a prepared module; changed in place, its function stays to the last bit.
        uses: the layers' calls, of the outermost graph; their inputs are observed.
        axes: the dimension of each one's channels.
    """
    groups: dict[tuple[Node, Node, int], list[Use]] = {}
    for use in uses:
        groups.setdefault((observed_value(model, use.x), use.x, axes[use]), []).append(use)
    emit = Emitter(model, "pt2q.smooth_quant")
    made = [_insert(emit, model, value, axis, found) for (value, _, axis), found in groups.items()]
    model.recompile()
    return made


def _insert(
    emit: Emitter, model: QuantGraphModule, value: Node, axis: int, uses: list[Use]
) -> Insertion:
    first = min(use.node for use in uses)
    shape = [int(value_of(value).shape[axis]), *[1] * (-axis - 1)]
    ones = torch.ones(shape, dtype=value_of(value).dtype)
    emit.before(first)
    name = emit.keep(f"{first.name}_smoothing", ones)
    product = emit.call(ops.aten.mul.Tensor, value, emit.read(name))
    observer = emit.names.numbered("activation_post_process")
    model.add_module(observer, copy.deepcopy(model.get_submodule(str(uses[0].x.target))))
    observed = emit.observe(observer, product)
    moved = tuple((use.node, use.x) for use in uses)
    for node, x in moved:
        node.replace_input_with(x, observed)
    return Insertion(product, name, axis, observer, moved)


def undo(model: QuantGraphModule, insertion: Insertion) -> None:
    """Take a multiplication out again.

    Args:
        model: changed in place.
        insertion: what `insert` gave.
    """
    product = insertion.product
    (observed,) = product.users
    (constant,) = (n for n in product.all_input_nodes if n.target == insertion.constant)
    for node, x in insertion.moved:
        node.replace_input_with(observed, x)
    for unused in (observed, product, constant):
        model.graph.erase_node(unused)
    model.delete_submodule(insertion.observer)
    delete_constant(model, insertion.constant)
    model.recompile()
