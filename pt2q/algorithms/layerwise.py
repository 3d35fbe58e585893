"""Algorithms that change one layer after the other: the run, the judging, the report.

The model is walked once. Before each layer, its inputs of all batches are at hand, in float and
behind the quantized layers before it, those changed already. The algorithm makes proposals from
some of the batches; the one with the smallest error of the layer's output on the others is taken,
if that is smaller than without (Nagel et al. 2020, section 3.3, for why inputs are the quantized
ones).
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from pt2q.algorithms.engine import Walk
from pt2q.algorithms.engine.lane import Place
from pt2q.algorithms.engine.rounding import Grid, grid_of
from pt2q.algorithms.engine.runner import Runner, seeded
from pt2q.algorithms.engine.walk import FLOAT, ROUNDED
from pt2q.algorithms.kept import Plain
from pt2q.algorithms.layers import Layer, Layers, Passed, Use, find_layers, outer_node
from pt2q.algorithms.originals import originals, replace_float
from pt2q.algorithms.pinned import pinned, replace_observer
from pt2q.algorithms.report import Report, Row, decibels
from pt2q.algorithms.samples import Sample, Samples, calls_of, collect, noise
from pt2q.algorithms.task import GraphAlgorithm, Task
from pt2q.distributed import Ranks
from pt2q.ir import ops
from pt2q.ir.emit import Emitter
from pt2q.ir.graph import beside, observed_value
from pt2q.ir.module import QuantGraphModule


@dataclass(frozen=True)
class Proposal:
    """What may become of a layer.

    Args:
        weight: the float weight that is to be rounded; None leaves the rounded one as it is.
        grid: what it is rounded to; None leaves that.
        bias: what is added; None leaves it.
        words: which of several proposals it is, for the report.
    """

    weight: Tensor | None = None
    grid: Grid | None = None
    bias: Tensor | None = None
    words: str = ""

    def plain(self) -> Plain:
        """As it is kept in a file."""
        grid = None if self.grid is None else vars(self.grid)
        return {**vars(self), "grid": grid}

    @classmethod
    def of(cls, plain: Plain) -> Proposal:
        """From what `plain` gave."""
        grid = None if plain["grid"] is None else Grid(**plain["grid"])
        return cls(**{**plain, "grid": grid})

    def rounded(self, work: Work) -> Tensor:
        """What the layer would multiply by."""
        if self.weight is None:
            return work.rounded
        return (work.grid if self.grid is None else self.grid).round(self.weight)


Proposed = Proposal | Callable[[], Proposal | None]
"""A proposal, or what computes it; None where it comes to nothing finite."""


@dataclass(frozen=True)
class Work:
    """A layer with what an algorithm needs to know of it.

    Args:
        walk: stands before the layer.
        layer: the layer.
        samples: its calls.
    """

    walk: Walk
    layer: Layer
    samples: Samples

    @property
    def use(self) -> Use:
        """The last of its calls; all have one form."""
        return self.layer.uses[-1]

    def _constant(self, lane: str, node: Any) -> Tensor | None:
        if node is None:
            return None
        runner = Runner(self.walk.program, self.walk.lanes[lane])
        found: Tensor = runner.constant(self.use.owner, node)
        return found

    @cached_property
    def weight(self) -> Tensor:
        """The weight in the float model."""
        found = self._constant(FLOAT, self.use.weight)
        assert found is not None
        return found

    @cached_property
    def bias(self) -> Tensor | None:
        """The bias in the float model."""
        return self._constant(FLOAT, self.use.bias)

    @cached_property
    def rounded(self) -> Tensor:
        """What the quantized model multiplies by."""
        found = self._constant(ROUNDED, self.use.weight)
        assert found is not None
        return found

    @cached_property
    def rounded_bias(self) -> Tensor | None:
        """What the quantized model adds."""
        return self._constant(ROUNDED, self.use.bias)

    @cached_property
    def grid(self) -> Grid:
        """What the weight is rounded to."""
        return grid_of(self.layer.observer, self.weight.dim())

    @cached_property
    def references(self) -> tuple[Tensor, ...]:
        """The float outputs of the calls to judge by."""
        return tuple(s.use.run(s.floating, self.weight, self.bias) for s in self.samples.check)

    def noise(self, weight: Tensor, bias: Tensor | None) -> float:
        """The error of the output on the calls to judge by.

        Args:
            weight, bias: as rounded.
        """
        return noise(self.samples, self.references, weight, bias)

    @property
    def signal(self) -> float:
        """The energy of the float outputs of the calls to judge by."""
        return self.samples.judged(
            lambda _, place: float(self.references[place].double().square().sum())
        )


@dataclass(frozen=True)
class LayerAlgorithm(GraphAlgorithm):
    """An algorithm that changes one layer after the other."""

    @abstractmethod
    def propose(self, work: Work) -> Iterable[Proposed]:
        """What may become of a layer, computed from the calls to fit on.

        Several processes share out what takes time and is given as a function; each asks for all
        else, so that it has to be the same everywhere.

        Args:
            work: the layer.

        Raises:
            Declined: it is passed over.
        """

    def improve(self, task: Task) -> Report:
        """See `GraphAlgorithm.improve`."""
        with seeded(task.seed), task.walk() as walk:
            walk.lanes[FLOAT].hold(originals(task.model))
            return self.run(walk, find_layers(walk.program), task)

    def run(self, walk: Walk, layers: Layers, task: Task) -> Report:
        """Go through the layers.

        Args:
            walk: stands at the beginning.
            layers: those of the model.
            task: what was asked for.
        """
        return _Run(self, walk, layers, task).report()


class Declined(Exception):
    """An algorithm has nothing to propose for a layer; the text says why."""


class _Run:
    """One run of an algorithm over all layers."""

    def __init__(self, algorithm: LayerAlgorithm, walk: Walk, layers: Layers, task: Task) -> None:
        self.algorithm = algorithm
        self.walk = walk
        self.layers = layers
        self.task = task
        self.seen: dict[Use, list[list[Sample]]] = {}
        self.rows: list[Row] = []
        self.done = 0
        self.passed = [(algorithm.name, item) for item in layers.passed]

    def report(self) -> Report:
        stops = [(use, layer) for layer in self.layers.found for use in layer.uses]
        stops.sort(key=lambda stop: self._position(stop[0]))
        for use, layer in stops:
            self.walk.advance(outer_node(self.walk.program, use))
            if use is not layer.uses[-1]:
                self.seen[use] = _kept(calls_of(self.walk, use))
                continue
            if self.task.progress is not None:
                self.task.progress(
                    self.done, len(self.layers.found), f"{self.algorithm.name}: {layer.name}"
                )
            self._work_on(layer)
            self.done += 1
        return Report(tuple(self.rows), tuple(self.passed))

    def _position(self, use: Use) -> int:
        return self.walk.schedule.position[outer_node(self.walk.program, use)]

    @torch.no_grad()
    def _work_on(self, layer: Layer) -> None:
        found = self.task.kept.recall(self.done, partial(self._solved, layer))
        for use in layer.uses:
            self.seen.pop(use, None)
        if "row" not in found:
            self.passed.append((self.algorithm.name, Passed(layer.name, found["passed"])))
            return
        row = Row(**found["row"])
        if row.kept:
            apply(self.walk, layer, Proposal.of(found["change"]))
        self.rows.append(row)

    def _solved(self, layer: Layer) -> Plain:
        """A row of the report with the change, or why the layer is passed over."""
        start = time.perf_counter()
        samples = collect(self.walk, layer, self.seen)
        try:
            if not samples.enough:
                raise Declined("too few batches reach it")
            work = Work(self.walk, layer, samples)
            best, before, after = _best(work, self.algorithm.propose(work))
        except Declined as reason:
            return {"passed": str(reason)}
        kept = best is not None and after < before
        row = Row(
            self.algorithm.name,
            layer.name,
            layer.module,
            decibels(work.signal, before),
            decibels(work.signal, after),
            kept,
            _reason(best, kept, samples),
            time.perf_counter() - start,
        )
        return {"row": vars(row), "change": best.plain() if kept and best is not None else None}


def _computed(ranks: Ranks, proposed: Iterable[Proposed]) -> Iterator[Proposal]:
    """All proposals in their order, computed by this process or another."""
    if ranks.size == 1:
        yield from (p for one in proposed if (p := one() if callable(one) else one) is not None)
        return
    every = list(proposed)
    own = range(ranks.rank, len(every), ranks.size)

    shared = ranks.share(lambda: {place: _result(every[place]) for place in own})
    found = {place: one for part in shared for place, one in part.items()}
    for place in range(len(every)):
        one = found[place]
        if isinstance(one, Declined):
            raise one
        if one is not None:
            yield one


def _result(proposed: Proposed) -> Proposal | Declined | None:
    """What a function comes to; that it declines is for all processes to know."""
    try:
        return proposed() if callable(proposed) else proposed
    except Declined as reason:
        return reason


def _best(work: Work, proposed: Iterable[Proposed]) -> tuple[Proposal | None, float, float]:
    """The proposal with the smallest error, the error without, and with it."""
    before = work.noise(work.rounded, work.rounded_bias)
    best, least = None, float("inf")
    for proposal in _computed(work.samples.ranks, proposed):
        bias = work.rounded_bias if proposal.bias is None else proposal.bias
        found = work.noise(proposal.rounded(work), bias)
        if found < least:
            best, least = replace(proposal, grid=proposal.grid or work.grid), found
    return best, before, least


def _reason(best: Proposal | None, kept: bool, samples: Samples) -> str:
    where = "held-out batches" if samples.apart else "the only batch"
    if best is None:
        return "nothing finite was proposed"
    error = f"{'less' if kept else 'no less'} error on {where}"
    return f"{best.words}: {error}" if best.words else error


def _kept(batches: Sequence[list[Sample]]) -> list[list[Sample]]:
    """Copies: what they are read from may be written before they are used."""
    return [
        [replace(s, floating=s.floating.clone(), rounded=s.rounded.clone()) for s in calls]
        for calls in batches
    ]


def apply(walk: Walk, layer: Layer, proposal: Proposal) -> None:
    """Make a change, in the model and in what the walk goes on with.

    Args:
        walk: stands before the layer.
        layer: the layer.
        proposal: what becomes of it, its grid with its weight.
    """
    model, grid = walk.model, proposal.grid
    assert isinstance(model, QuantGraphModule)
    if proposal.weight is not None and grid is not None:
        replace_float(model, layer.places, grid.round(proposal.weight))
        for old in layer.observers:
            replace_observer(model, old, pinned(old, grid))
    if proposal.bias is not None:
        for use in layer.uses:
            set_bias(walk, use, proposal.bias)


def set_bias(walk: Walk, use: Use, value: Tensor) -> None:
    """Let a call add another bias in the quantized model; one that has none gets one.

    Args:
        walk: stands before the call.
        use: the call.
        value: what is added.
    """
    model = walk.model
    assert isinstance(model, QuantGraphModule)
    if use.bias is None:
        place = give_bias(use, torch.zeros_like(value))
        walk.lanes[FLOAT].hold({place: torch.zeros_like(value)})
        walk.refresh()
    else:
        place = (use.owner, str(observed_value(use.owner, use.bias).target))
    replace_float(model, (place,), value)


def give_bias(use: Use, value: Tensor) -> Place:
    """Write a bias for a call that has none; returns where it is."""
    emit = Emitter(use.owner, "pt2q.bias_correction").before(use.node)
    name = emit.keep(beside(str(_source(use.weight).target), "bias"), nn.Parameter(value))
    ops.set_argument(use.node, "bias", emit.read(name))
    use.owner.recompile()
    return use.owner, name


def _source(node: Node) -> Node:
    """The constant behind an observer."""
    (source,) = node.all_input_nodes
    return source
