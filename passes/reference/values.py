"""What a value of a quantized graph is, in integers.

A `Quantized` value is ``(q - zero_point) * scale``. A `Sum` is what integer arithmetic made of
quantized values and has not been rounded yet: accumulators with scales, and a constant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.fx import Node

from pt2q.ir.qparams import QParams


class NoIntegerForm(Exception):
    """Raised by a rule: this call has no integer form, and why. The call stays in float."""


@dataclass(frozen=True, eq=False)
class Quantized:
    """A node of integers and what they stand for."""

    node: Node
    params: QParams


@dataclass(frozen=True, eq=False)
class Term:
    """``node * scale``, with ``node`` an integer accumulator.

    Args:
        node: int32 or int64.
        scale: float64, broadcastable with the node.
        bound: no element of ``node`` is larger in magnitude.
        runtime: nodes with further factors of the scale, known when the model runs.
        summed: a dimension of ``node`` to be summed after the scales were applied: that of
            groups with a scale each.
    """

    node: Node
    scale: Tensor
    bound: int
    runtime: tuple[Node, ...] = ()
    summed: int | None = None

    def scaled(self, factor: float | Tensor) -> Term:
        """The term times a known number or constant."""
        return replace(self, scale=self.scale * factor)


@dataclass(frozen=True, eq=False)
class Sum:
    """``clamp(sum(terms) + constant, low, high)``, exact.

    Args:
        terms: the accumulators.
        constant: float64, broadcastable with the terms.
        low, high: bounds in real numbers, from a fused activation.
    """

    terms: tuple[Term, ...]
    constant: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    low: float = -math.inf
    high: float = math.inf

    @property
    def is_bounded(self) -> bool:
        """Whether an activation was applied: nothing more can be added then."""
        return self.low > -math.inf or self.high < math.inf

    @property
    def is_static(self) -> bool:
        """Whether all scales are known now."""
        return not any(term.runtime for term in self.terms)

    def clamped(self, low: float, high: float) -> Sum:
        """The sum with ``clamp(., low, high)`` applied on top."""
        least, most = (min(max(bound, low), high) for bound in (self.low, self.high))
        return replace(self, low=least, high=most)

    def scaled(self, factor: float | Tensor) -> Sum:
        """The sum times a known number or constant.

        Raises:
            NoIntegerForm: it has bounds and the factor is not one positive number.
        """
        terms = tuple(term.scaled(factor) for term in self.terms)
        result = replace(self, terms=terms, constant=self.constant * factor)
        if not self.is_bounded:
            return result
        number = torch.as_tensor(factor)
        if number.numel() != 1 or float(number) <= 0:
            raise NoIntegerForm("an activation times what is not one positive number")
        return replace(result, low=self.low * float(number), high=self.high * float(number))


Value = Quantized | Sum
