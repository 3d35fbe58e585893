"""Find the cheapest way to quantize a model that keeps within a bound.

What each layer loses in each form is measured once, alone (`measured_units`). An integer program
then gives the cheapest choice whose losses add up to at most some noise. They do not quite add up,
so how much of it the bound allows is found by bisection, with the whole model measured each time:
at most ``log2 N`` times for ``N`` layers.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pt2q.algorithms.engine import Lane, Walk
from pt2q.algorithms.engine.walk import ROUNDED
from pt2q.algorithms.task import Progress
from pt2q.debug.diagnosis.changes import FLOAT, Setup
from pt2q.debug.recipe_search.measuring import changes_of, measured_units
from pt2q.debug.recipe_search.result import SearchResult, Trial
from pt2q.debug.recipe_search.table import BITS, Assignment, Unit, best, cheapest, cost_of, noise_of
from pt2q.debug.sensitivities.judging import Judge, Metric, MetricJudge, SqnrJudge
from pt2q.debug.sensitivities.sensitivity import float_results
from pt2q.errors import DataError, Pt2qWarning, SearchError
from pt2q.ir.module import QuantGraphModule

COSTS = ("macs", "bytes")
STEPS = 40
"""Looks of a bisection; those that come upon what was measured cost nothing."""
ROUNDING = 1e-9
"""By how much a sum may fall short of itself in another order."""


@dataclass(frozen=True)
class Bound:
    """What a result has to keep; one of the three.

    Args:
        min_sqnr: the output's signal to noise ratio, in dB.
        max_drop: how much less a metric may say than of the float model.
        max_cost: what all may cost, as a share of the float model.
    """

    min_sqnr: float | None = None
    max_drop: float | None = None
    max_cost: float | None = None

    def __post_init__(self) -> None:
        given = [v for v in (self.min_sqnr, self.max_drop, self.max_cost) if v is not None]
        if len(given) != 1:
            raise SearchError("give one bound: min_sqnr, max_drop with a metric, or max_cost")


def search(
    setup: Setup,
    batches: Sequence[Any],
    bound: Bound,
    *,
    metric: Metric | None = None,
    candidates: Sequence[str] = ("float", "int8"),
    cost: str = "macs",
    evaluations: int | None = None,
    minutes: float | None = None,
    passes: float = 25.0,
    units: Sequence[Unit] | None = None,
    processes: int = 1,
    progress: Progress | None = None,
) -> SearchResult:
    """Find the cheapest choice of a form for each layer that keeps within a bound.

    Args:
        setup: quantizes the model; `pt2q.debug.QuantizerSetup`.
        batches: to measure on, best not those of calibration.
        bound: what is to be kept.
        metric: judges instead of the signal to noise ratio; with ``max_drop``.
        candidates: forms to choose from, of ``float``, ``int16``, ``int8`` and ``int4`` (the bits
            of weights); what the backend does not run is passed over.
        cost: ``"macs"``, multiply-accumulates times bits, or ``"bytes"`` of weights.
        evaluations: how often the whole model is measured at most; ``log2 N`` if not given.
        minutes: when to stop measuring the whole model.
        passes: bounds the ranking of each form, see `sensitivity`.
        units: what an earlier search has measured, ``result.units``: nothing is ranked again.
        processes: how many to share the ranking out to; the result is that of one, to the bit.
        progress: is told where the ranking stands.

    Returns:
        The best choice found; ``result.met`` says whether it keeps within the bound.

    Raises:
        SearchError: a candidate, cost or bound is not known, or the model has no quantized layer.
        DataError: there is no batch.
    """
    _check(candidates, cost, bound, metric, batches)
    forms = tuple(candidates)
    if units is None:
        units, forms = measured_units(setup, candidates, batches, passes, processes, progress)
    if not units or not forms:
        raise SearchError("no layer is quantized in any of the candidates: nothing to choose from")
    run = _Search(setup, batches, bound, metric, tuple(units), cost)
    run.deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
    run.most = max(math.ceil(math.log2(len(units) + 1)), 1) if evaluations is None else evaluations
    return run.within_budget() if bound.max_cost is not None else run.bisected()


def _check(
    candidates: Sequence[str],
    cost: str,
    bound: Bound,
    metric: Metric | None,
    batches: Sequence[Any],
) -> None:
    strange = [form for form in candidates if form not in BITS]
    if strange or not candidates:
        raise SearchError(f"candidates: expected some of {', '.join(BITS)}, found {strange}")
    if cost not in COSTS:
        raise SearchError(f"cost: expected one of {', '.join(COSTS)}, found {cost!r}")
    if (bound.max_drop is None) != (metric is None) and bound.max_cost is None:
        raise SearchError("max_drop goes with a metric, and min_sqnr with none")
    if not batches:
        raise DataError("there is no batch: give at least one to run the model on")


class _Bracket:
    """Between which noises the bound lies, in logarithms; see `_Search.bisected`.

    Args:
        low, high: the ends.
        guess: where to look first; in the middle if None.
    """

    def __init__(self, low: float, high: float, guess: float | None) -> None:
        self.safe, self.lost = math.log(low), math.log(high)
        first = (self.safe + self.lost) / 2 if guess is None else math.log(guess)
        self.next = min(max(first, self.safe), self.lost)
        self.seen = {True: False, False: False}

    def narrow(self, met: bool) -> None:
        """Take in whether the bound was met at ``next``, and say where to look then.

        While all looks were on one side the next is at twice, or half, the noise.
        """
        at = self.next
        self.safe, self.lost = (at, self.lost) if met else (self.safe, at)
        self.seen[met] = True
        step = math.log(2) if met else -math.log(2)
        middle = (self.safe + self.lost) / 2
        inside = self.safe < at + step < self.lost
        self.next = at + step if inside and not all(self.seen.values()) else middle


class _Search:
    """One search, with its trials."""

    def __init__(
        self,
        setup: Setup,
        batches: Sequence[Any],
        bound: Bound,
        metric: Metric | None,
        units: tuple[Unit, ...],
        cost: str,
    ) -> None:
        self.setup, self.batches, self.bound = setup, batches, bound
        self.units, self.cost = units, cost
        self.deadline, self.most = math.inf, 1
        self.trials: list[Trial] = []
        references = float_results(setup.prepared()[0], batches)
        self.judge: Judge = SqnrJudge(references) if metric is None else MetricJudge(metric)
        self.least = bound.min_sqnr if bound.min_sqnr is not None else -math.inf
        if metric is not None and bound.max_drop is not None:
            exact = self.judge.value(self.judge.tally(references, range(len(references))))
            self.least = exact - bound.max_drop

    def bisected(self) -> SearchResult:
        """The cheapest within a bound of quality."""
        bracket = _Bracket(*self._ends(), self._guess())
        for _ in range(STEPS):
            if not self._may_go_on():
                break
            found = cheapest(self.units, self.cost, math.exp(bracket.next))
            bracket.narrow(found is not None and self._tried(found).met)
        if not any(trial.met for trial in self.trials):
            self._tried({u.name: min(u.noise, key=u.noise.__getitem__) for u in self.units})
        return self._result()

    def _guess(self) -> float | None:
        """The noise that the bound allows, if losses add up exactly."""
        return None if self.bound.min_sqnr is None else 10 ** (-self.bound.min_sqnr / 10)

    def within_budget(self) -> SearchResult:
        """The least noise within a budget of cost."""
        assert self.bound.max_cost is not None
        whole = sum(unit.cost(FLOAT, self.cost) for unit in self.units)
        found = best(self.units, self.cost, self.bound.max_cost * whole)
        if found is None:
            found = {u.name: min(u.noise, key=lambda f: BITS[f]) for u in self.units}
            self.least = math.inf  # not even the cheapest fits
        self._tried(found)
        return self._result()

    def _ends(self) -> tuple[float, float]:
        """Noise below which all layers have their best form, and above which their cheapest."""
        noises = [n for u in self.units for n in u.noise.values() if n > 0]
        low = min(noises, default=1e-12) / 2
        cheap = {u.name: min(u.noise, key=lambda f: BITS[f]) for u in self.units}
        return low, max(noise_of(self.units, cheap) * 1.01, low * 2)

    def _may_go_on(self) -> bool:
        return len(self.trials) < self.most and time.monotonic() < self.deadline

    def _tried(self, assignment: Assignment) -> Trial:
        known = next((t for t in self.trials if t.assignment == assignment), None)
        if known is not None:
            return known
        with warnings.catch_warnings():  # what a trial warns of is no news
            warnings.simplefilter("ignore", Pt2qWarning)
            model, _ = self.setup.prepared(changes_of(self.units, assignment))
        value = self._value(model)
        cost = cost_of(self.units, assignment, self.cost)
        self.trials.append(Trial(assignment, cost, value, value >= self.least - ROUNDING))
        return self.trials[-1]

    def _value(self, model: QuantGraphModule) -> float:
        with Walk(model, self.batches, [Lane.rounding()]) as walk:
            results = walk.finish()[ROUNDED]
        return self.judge.value(self.judge.tally(results, range(len(results))))

    def _result(self) -> SearchResult:
        met = [trial for trial in self.trials if trial.met]
        chosen = (
            min(met, key=lambda t: (t.cost, -t.value))
            if met
            else max(self.trials, key=lambda t: t.value)
        )
        whole = sum(unit.cost(FLOAT, self.cost) for unit in self.units)
        return SearchResult(
            self.units, chosen, tuple(self.trials), self.cost, whole, self.judge.name
        )
