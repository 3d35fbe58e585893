"""What each layer costs and loses in each form, and the choice that follows from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pt2q.errors import SearchError
from pt2q.optional import optional_modules

BITS = {"float": 32, "int16": 16, "int8": 8, "int4": 4}
"""The forms that a layer can have, with the bits of its weights."""


@dataclass(frozen=True)
class Unit:
    """Operators that have one form, as the backend runs them as one.

    Args:
        name: of the operator with the weight.
        nodes: all of them.
        module: that it was written in.
        macs: its multiply-accumulates.
        numbers: how many numbers its weights hold.
        noise: by form, what the output loses when it alone has that form: noise over signal.
    """

    name: str
    nodes: tuple[str, ...]
    module: str
    macs: int
    numbers: int
    noise: Mapping[str, float]

    def cost(self, form: str, by: str) -> float:
        """What it costs in a form.

        Args:
            form: one of `BITS`.
            by: ``"macs"`` for multiply-accumulates times bits, ``"bytes"`` for those of weights.
        """
        return BITS[form] * (self.macs if by == "macs" else self.numbers / 8)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "nodes": list(self.nodes), "noise": dict(self.noise)}


Assignment = dict[str, str]
"""The form of each unit, by its name."""


def cost_of(units: Sequence[Unit], assignment: Assignment, by: str) -> float:
    """What all units cost together."""
    return sum(unit.cost(assignment[unit.name], by) for unit in units)


def noise_of(units: Sequence[Unit], assignment: Assignment) -> float:
    """What they lose together, if what each loses adds up."""
    return sum(unit.noise[assignment[unit.name]] for unit in units)


def cheapest(units: Sequence[Unit], by: str, most: float) -> Assignment | None:
    """The assignment of least cost whose noise is not above a bound; None if there is none.

    Args:
        units: with what they lose.
        by: see `Unit.cost`.
        most: the bound.
    """
    return _solved(units, lambda u, f: u.cost(f, by), lambda u, f: u.noise[f], most)


def best(units: Sequence[Unit], by: str, budget: float) -> Assignment | None:
    """The assignment of least noise whose cost is not above a budget; None if there is none.

    Args:
        units: with what they lose.
        by: see `Unit.cost`.
        budget: the bound.
    """
    return _solved(units, lambda u, f: u.noise[f], lambda u, f: u.cost(f, by), budget)


def _solved(units: Sequence[Unit], wanted: Any, bounded: Any, bound: float) -> Assignment | None:
    """A choice of one form for each unit, by an integer program: the multiple-choice knapsack."""
    numpy, optimize = optional_modules("numpy", "scipy.optimize", extra="search")
    pairs = [(unit, form) for unit in units for form in unit.noise]
    costs = numpy.array([wanted(u, f) for u, f in pairs])
    limits = numpy.array([bounded(u, f) for u, f in pairs])
    if not pairs:
        return {}
    one = numpy.array([[float(u is unit) for u, _ in pairs] for unit in units])
    scale = bound if bound > 0 else 1.0
    found = optimize.milp(
        c=costs / max(float(costs.max()), 1e-300),
        integrality=numpy.ones(len(pairs)),
        bounds=optimize.Bounds(0, 1),
        constraints=[
            optimize.LinearConstraint(one, 1, 1),
            optimize.LinearConstraint((limits / scale)[None], -numpy.inf, bound / scale),
        ],
        options={"time_limit": 5.0, "mip_rel_gap": 1e-4},
    )
    if found.x is None:
        return None
    chosen = [pair for pair, x in zip(pairs, found.x, strict=True) if x > 0.5]
    if len(chosen) != len(units):
        raise SearchError("the integer program gave no whole solution")
    return {unit.name: form for unit, form in chosen}
