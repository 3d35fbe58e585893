"""Bias absorption: take out of an activation what it never falls below.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section
4.1.3. Equalization can leave biases that lift a channel far above zero, and the range of its
activation then holds integers that are never used. Where ``W x + b >= c >= 0``,

    relu(W x + b) = relu(W x + b - c) + c,

so that ``c`` may move from this layer's bias into the next one's: ``b1' = b1 - c``,
``b2' = b2 + W2 c``. Here ``c`` is the least that the data give, not an estimate from a batch norm.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.fx import Node

from pt2q.algorithms.engine import Walk
from pt2q.algorithms.engine.lane import Place
from pt2q.algorithms.engine.rounding import is_static
from pt2q.algorithms.engine.runner import Values
from pt2q.algorithms.engine.walk import FLOAT
from pt2q.algorithms.layers import Layer, Use
from pt2q.algorithms.layerwise import Declined
from pt2q.algorithms.site_run import SiteRun
from pt2q.algorithms.transfer import Site, observers_between, tensor_at
from pt2q.algorithms.trial import Trial
from pt2q.ir import ops
from pt2q.ir.graph import is_observer_call
from pt2q.observers import DerivedObserverOrFakeQuantize

_FOLLOWS = DerivedObserverOrFakeQuantize
_HANDS_ON = ops.RELU | ops.SHAPE | ops.MAX_POOL2D | ops.ADAPTIVE_AVG_POOL2D | ops.DROPOUT | ops.MEAN
"""What gives ``f(x + c) = f(x) + c`` channel by channel, where nothing falls below zero."""


def absorbed(run: SiteRun, site: Site) -> tuple[Trial, str]:
    """The change that takes out of a site what it never falls below.

    Args:
        run: stands before the site.
        site: its channels all go to layers.

    Raises:
        Declined: nothing can be taken out, or nowhere be put.
    """
    _check(run.walk, site)
    shift = _least(run, site)
    if not bool((shift > 0).any()):
        raise Declined("its channels fall to zero")
    tensors = [(site.source.tensors[1], tensor_at(site.source.tensors[1]) - shift)]
    tensors += [_raised(run.walk, layer, labels, shift) for layer, labels in site.layers]
    trial = Trial(run.walk, run.rounding, tuple(tensors), (), observers_between(run.walk, site))
    return trial, f"{int((shift > 0).sum())} bias(es) moved"


def _check(walk: Walk, site: Site) -> None:
    if site.source.others:
        raise Declined("it is called several times")
    if len(site.source.tensors) < 2:
        raise Declined("it has no bias")
    others = [
        node
        for node in site.reach.between[1:]
        if not is_observer_call(walk.model, node) and not ops.is_op(node, _HANDS_ON)
    ]
    if others:
        raise Declined(f"{others[0].name} does not hand a bias on")
    if not any(ops.is_op(node, ops.RELU) for node in site.reach.between):
        raise Declined("no relu follows it")
    if not bool(site.reach.free.all()):
        raise Declined("not all of its channels go to layers")
    for layer, _ in site.layers:
        if len(layer.uses) > 1 or _pads(layer.uses[0]):
            raise Declined(f"{layer.name} is called twice, or pads its input with zeros")


def _pads(use: Use) -> bool:
    if not ops.is_op(use.node, ops.CONV | ops.CONV_GENERIC):
        return False
    padding = ops.argument(use.node, "padding")
    transposed = ops.is_op(use.node, ops.CONV_TRANSPOSE) or (
        ops.is_op(use.node, ops.CONV_GENERIC) and ops.argument(use.node, "transposed")
    )
    return bool(transposed) or padding == "same" or (padding != "valid" and any(padding))


def _least(run: SiteRun, site: Site) -> Tensor:
    """``c``: the least that each channel has in the data to compute from, at least 0."""
    node, axis = site.source.node, site.source.axis

    def least(row: Values) -> Tensor:
        y = run.parting.to_fit(row[node]).movedim(axis, -1)
        return y.reshape(-1, y.shape[-1]).amin(0)

    rows = run.walk.replay([node], run.walk.lanes[FLOAT], batches=run.parting.fit)
    found = run.walk.shared(map(least, rows), run.parting.fit)
    return torch.stack(list(found)).amin(0).clamp(min=0)


def _raised(
    walk: Walk, layer: Layer, labels: Tensor, shift: Tensor
) -> tuple[tuple[Place, ...], Tensor]:
    """The bias of a layer with what the shift of its inputs gives."""
    use = layer.uses[0]
    place = None if use.bias is None else _place(walk, use, use.bias)
    if place is None:
        raise Declined(f"{layer.name} has no bias of its own")
    each = torch.where(labels >= 0, shift[labels.long().clamp(min=0)], 0.0)
    rows = layer.form.rows(layer.weight)
    groups, out, k = rows.shape
    inputs = each.reshape(groups, 1, -1)
    added = (rows * inputs.repeat_interleave(k // inputs.shape[2], 2)).sum(2)
    return (place,), tensor_at((place,)) + added.reshape(groups * out)


def _place(walk: Walk, use: Use, bias: Node) -> Place | None:
    """Where a bias is, if this call alone reads it."""
    chain = list(_behind(walk, bias))
    own = [walk.model.get_submodule(str(node.target)) for node in chain if node.op == "call_module"]
    if any(is_static(found) and not isinstance(found, _FOLLOWS) for found in own):
        raise Declined(f"the bias of {use.node.name} has a range of its own")
    alone = all(len(node.users) == 1 for node in chain)
    source = chain[-1]
    return (use.owner, str(source.target)) if alone and source.op == "get_attr" else None


def _behind(walk: Walk, node: Node) -> Iterator[Node]:
    yield node
    while is_observer_call(walk.model, node) and isinstance(node.args[0], Node):
        node = node.args[0]
        yield node
