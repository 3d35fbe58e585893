"""Take a factor per channel out of what makes a value, and put it into the layers that read it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from pt2q.algorithms.channels import Reach
from pt2q.algorithms.engine import Lane, Walk
from pt2q.algorithms.engine.lane import Place
from pt2q.algorithms.layers import Layer
from pt2q.algorithms.matrix import MatrixForm
from pt2q.algorithms.trial import Trial, fresh, shown
from pt2q.ir.graph import get_constant


@dataclass(frozen=True)
class Source:
    """What makes a value and can take a factor out of it.

    Args:
        node: the operator; of several, the first.
        axis: the dimension of its channels.
        tensors: the names of each tensor that is divided.
        layer: the layer, if it is one.
        form: of the first tensor, where that is a weight; norms have vectors alone.
        others: the operators beside it that read the same tensors, as those of another program or
            of another call do: one factor is taken out of the values of all.
    """

    node: Node
    axis: int
    tensors: tuple[tuple[Place, ...], ...]
    layer: Layer | None = None
    form: MatrixForm | None = None
    others: tuple[Node, ...] = ()

    def divided(self, factor: Tensor) -> Iterator[tuple[tuple[Place, ...], Tensor]]:
        """The new tensors."""
        for index, places in enumerate(self.tensors):
            old = tensor_at(places)
            if index == 0 and self.form is not None:
                rows = self.form.rows(old)
                scaled = rows / factor.reshape(rows.shape[0], rows.shape[1], 1)
                yield places, self.form.weight(scaled, old)
            else:
                yield places, old / factor.reshape(old.shape)


@dataclass(frozen=True)
class Site:
    """A value with what makes it and the layers that read it.

    Args:
        source: what makes it.
        reach: where its channels go.
        layers: those that read it, each with the channel of each of its inputs.
        observers: those of values between; their ranges move.
        targets: the layers' calls.
    """

    source: Source
    reach: Reach
    layers: tuple[tuple[Layer, Tensor], ...]
    observers: tuple[Node, ...]
    targets: tuple[Node, ...]

    @property
    def name(self) -> str:
        """The layers' names."""
        return ", ".join(layer.name for layer, _ in self.layers)


def tensor_at(places: tuple[Place, ...]) -> Tensor:
    """The tensor that some places hold."""
    owner, target = places[0]
    return get_constant(owner, target).detach()


def scaled_inputs(layer: Layer, labels: Tensor, factor: Tensor) -> Tensor:
    """The weight of a layer with the factor of each input's channel put in.

    Args:
        layer: the layer.
        labels: the channel of each input; those that are none have a negative one.
        factor: of each channel.
    """
    weight = layer.weight
    rows = layer.form.rows(weight)
    each = torch.where(labels >= 0, factor[labels.long().clamp(min=0)], 1.0)
    groups, _, k = rows.shape
    per_group = each.reshape(groups, 1, -1)
    return layer.form.weight(rows * per_group.repeat_interleave(k // per_group.shape[2], 2), weight)


def trial_of(walk: Walk, rounding: Lane, site: Site, factor: Tensor) -> Trial:
    """The change that a factor makes at a site.

    Raises:
        Declined: an observer cannot be shown another range.
    """
    tensors = list(site.source.divided(factor))
    weights: list[tuple[Any, Any]] = []
    if site.source.layer is not None:
        weights += shown(site.source.layer, tensors[0][1])
    for layer, labels in site.layers:
        changed = scaled_inputs(layer, labels, factor)
        tensors.append((layer.places, changed))
        weights += shown(layer, changed)
    between = observers_between(walk, site)
    return Trial(walk, rounding, tuple(tensors), tuple(weights), between)


def observers_between(walk: Walk, site: Site) -> tuple[tuple[Any, Any], ...]:
    """The observers of values between a source and its layers, each with a stand-in.

    Raises:
        Declined: an observer cannot forget what it has seen.
    """
    found = {
        str(node.target): walk.model.get_submodule(str(node.target)) for node in site.observers
    }
    return tuple((observer, fresh(observer)) for observer in found.values())
