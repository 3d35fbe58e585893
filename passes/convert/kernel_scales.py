"""Scales between which an integer kernel can carry its sums: none that a result could not bear.

A kernel counts its sums in int32 in units of ``input * weight``, adds the bias in these units, and
multiplies by ``unit / result``. A layer with weights near zero beside a bias, or a result that is
always zero, has scales for which the bias does not fit into int32 or the multiplier is beyond what
a kernel takes (XNNPACK: ``[2^-32, 2^8)``). There a scale is made wider, by no more than is needed;
what is rounded away then lies far below one step of the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from pt2q.ir import ops
from pt2q.ir.graph import get_constant, is_constant
from pt2q.observers import (
    DerivedObserverOrFakeQuantize,
    FixedQParamsFakeQuantize,
    FixedQParamsObserver,
    Form,
    form_of,
)

SUMS = 2.0**30
"""A bias in units of the sums is at most this: half of int32 is left to the products."""
MULTIPLIER = 2.0**-30, 2.0**7
"""The bounds of ``unit / result``."""
PRODUCTS = ops.CONV | ops.CONV_TRANSPOSE | ops.LINEAR | ops.ADDMM | ops.MM | ops.MATMUL
COMBINED = ops.ADD | ops.SUB | ops.MUL | ops.MEAN | ops.ADAPTIVE_AVG_POOL2D
PASSED = ops.RELU | ops.CLAMP_LIKE
GIVEN = (DerivedObserverOrFakeQuantize, FixedQParamsObserver, FixedQParamsFakeQuantize)
"""What follows no range; its parameters stay."""

Calls = Sequence[tuple[Node, Any]]
Parameters = dict[int, tuple[Tensor, Tensor]]


def fit_to_kernels(found: Sequence[tuple[Any, GraphModule, Calls]], qparams: Parameters) -> None:
    """Widen the scales of weights and results where no kernel could carry the sums.

    Args:
        found: of each module its path, itself and its calls of observers.
        qparams: scale and zero point by the identity of the observer; changed in place.
    """
    fixed = frozenset(_fixed([call for _, _, calls in found for call in calls]))
    for _, module, calls in found:
        scales = _Scales(module, dict(calls), qparams, fixed)
        for node in module.graph.nodes:
            if ops.is_op(node, PRODUCTS):
                _fit_product(node, scales)
            elif ops.is_op(node, COMBINED):
                _fit_result(node, _unit_of_combined(node, scales), scales)


def _fixed(calls: Calls) -> Iterator[int]:
    """Observers whose scale is given, or that another's is derived from."""
    for _, observer in calls:
        if isinstance(observer, GIVEN):
            yield id(observer)
            yield from map(id, getattr(observer, "obs_or_fqs", ()))


@dataclass(frozen=True)
class _Scales:
    """The scales of a graph's static observers.

    Args:
        module: whose graph it is.
        observers: by the node of the call.
        qparams: scale and zero point by observer.
        fixed: observers whose scales stay.
    """

    module: GraphModule
    observers: Mapping[Node, Any]
    qparams: Parameters
    fixed: frozenset[int]

    def of(self, node: Node | None) -> Tensor | None:
        """The scale of an observer's call; None for other nodes and for computed scales."""
        observer = None if node is None else self.observers.get(node)
        if observer is None or form_of(observer) is not Form.STATIC:
            return None
        found = self.qparams.get(id(observer))
        return None if found is None else found[0]

    def of_one(self, node: Node | None) -> float | None:
        """The scale of a tensor that has one."""
        scale = self.of(node)
        return float(scale) if scale is not None and scale.numel() == 1 else None

    def widen(self, node: Node, least: Tensor) -> None:
        """Let a scale be no smaller; ``least`` has its shape, or is one number."""
        key = id(self.observers[node])
        scale, zero_point = self.qparams[key]
        if key not in self.fixed and bool((scale < least.to(scale)).any()):
            self.qparams[key] = torch.maximum(scale, least.to(scale)), zero_point


def _fit_product(node: Node, scales: _Scales) -> None:
    given = dict(ops.tensor_arguments(node))
    weight = next((given[name] for name in ("weight", "mat2", "other") if name in given), None)
    source = next((given[name] for name in ("input", "mat1", "self") if name in given), None)
    bias = given.get("self" if ops.is_op(node, ops.ADDMM) else "bias")
    if (
        source is None
        or weight is None
        or scales.of_one(source) is None
        or scales.of(weight) is None
    ):
        return
    if bias is not None and is_constant(bias):
        numbers = get_constant(scales.module, bias).detach().abs().double()
        _fit_unit(source, weight, numbers / SUMS, scales)
    for result in _results(node, scales):
        step = torch.tensor(scales.of_one(result) or 0.0).double()
        _fit_unit(source, weight, step * MULTIPLIER[0], scales)
    steps = scales.of(weight)
    assert steps is not None
    _fit_result(node, (scales.of_one(source) or 0.0) * float(steps.max()), scales)


def _fit_unit(source: Node, weight: Node, least: Tensor, scales: _Scales) -> None:
    """Let ``input * weight`` be no smaller: of the two, the one with the smaller scale is widened.

    So what is next to zero makes room, and what others read in another range stays.
    """
    one, steps = scales.of_one(source), scales.of(weight)
    assert one is not None and steps is not None
    if float(least.max()) <= one * float(steps.min()):
        return
    least = _like(least, steps)
    over = (least / steps.double())[..., one < steps]
    if over.numel():
        scales.widen(source, over.max())
    scales.widen(weight, least / (scales.of_one(source) or one))


def _like(least: Tensor, scale: Tensor) -> Tensor:
    """One number for each scale; channels that repeat over groups have the largest."""
    if scale.dim() == 1 and scale.numel() and least.numel() % scale.numel() == 0:
        return least.reshape(-1, scale.numel()).amax(0).reshape(scale.shape)
    return least.max().expand(scale.shape)


def _unit_of_combined(node: Node, scales: _Scales) -> float | None:
    found = [scales.of_one(source) for _, source in ops.tensor_arguments(node)]
    known = [scale for scale in found if scale is not None]
    if not known or len(known) < len(found):
        return None
    return known[0] * known[-1] if ops.is_op(node, ops.MUL) else max(known)


def _fit_result(node: Node, unit: float | None, scales: _Scales) -> None:
    for result in _results(node, scales) if unit is not None else ():
        assert unit is not None
        scales.widen(result, torch.tensor(unit / MULTIPLIER[1]))


def _results(node: Node, scales: _Scales) -> list[Node]:
    """The observers of an operator's result, behind the activation that is fused with it."""
    at = node
    while len(at.users) == 1 and ops.is_op(next(iter(at.users)), PASSED):
        at = next(iter(at.users))
    return [user for user in at.users if scales.of_one(user) is not None]
