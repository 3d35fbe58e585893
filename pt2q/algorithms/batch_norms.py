"""Batch norms that see quantized inputs get the statistics of these.

A batch norm that could not be folded into what is before it subtracts the mean of float inputs and
divides by their deviation. Behind quantized layers both differ. With the moments ``m, v`` of its
float inputs over the data and ``m', v'`` of the quantized ones,

    variance' = variance v' / v,    mean' = m' + (mean - m) sqrt(v' / v)

give back the first two moments of its output, channel by channel (re-estimating statistics after a
change of the layers before is done in Sun et al. 2019, "Hybrid 8-bit Floating Point Training and
Inference for Deep Neural Networks", section 3.4).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from pt2q.algorithms.engine import Walk
from pt2q.algorithms.engine.runner import Runner
from pt2q.algorithms.engine.walk import FLOAT, ROUNDED
from pt2q.algorithms.layers import Passed
from pt2q.algorithms.layerwise import Declined
from pt2q.algorithms.originals import originals, replace_float
from pt2q.algorithms.parting import Parting
from pt2q.algorithms.report import Report, Row, decibels
from pt2q.algorithms.task import GraphAlgorithm, Task
from pt2q.algorithms.trial import energy, noise
from pt2q.distributed import together
from pt2q.ir import ops
from pt2q.ir.graph import module_path
from pt2q.ir.module import QuantGraphModule

STATISTICS = ("running_mean", "running_var")
Pair = tuple[Tensor, Tensor]
"""The same value in the float and in the quantized model."""
Sums = tuple[Tensor, Tensor, int]
"""The sum, the sum of squares, and of how many."""


@dataclass(frozen=True)
class BatchNormStatistics(GraphAlgorithm):
    """Estimate the statistics of batch norms behind quantized layers anew."""

    name: ClassVar[str] = "batch_norm"

    def improve(self, task: Task) -> Report:
        """See `GraphAlgorithm.improve`."""
        rows: list[Row] = []
        passed: list[tuple[str, Passed]] = []
        with task.walk() as walk:
            walk.lanes[FLOAT].hold(originals(task.model))
            parting = Parting.of(walk)
            norms = [n for n in walk.schedule.nodes if ops.is_op(n, ops.BATCH_NORM)]
            for done, node in enumerate(norms):
                if task.progress is not None:
                    task.progress(done, len(norms), f"{self.name}: {node.name}")
                try:
                    rows.append(_improved(walk, parting, node))
                except Declined as reason:
                    passed.append((self.name, Passed(node.name, str(reason))))
        return Report(tuple(rows), tuple(passed))


@torch.no_grad()
def _improved(walk: Walk, parting: Parting, node: Node) -> Row:
    start = time.perf_counter()
    norm = _Norm.of(walk, node)
    if ops.argument(node, "input").op != "placeholder":
        walk.advance(ops.argument(node, "input"))
    pairs = together(walk.ranks, lambda: dict(zip(walk.own(), _inputs(walk, node), strict=True)))
    fit = [tuple(map(parting.to_fit, pairs[b])) for b in walk.own(parting.fit)]
    check = [tuple(map(parting.to_check, pairs[b])) for b in walk.own(parting.check)]
    sums = walk.shared(([_sums(a), _sums(b)] for a, b in fit), parting.fit)
    found = norm.matched(*map(_moments, zip(*sums, strict=True)))
    exact = [norm.run(a, norm.mean, norm.variance) for a, _ in check]
    before, after = (
        noise(walk.ranks, exact, [norm.run(b, *statistics) for _, b in check])
        for statistics in ((norm.mean, norm.variance), found)
    )
    if kept := after < before:
        norm.replace(walk, found)
    signal = energy(walk.ranks, exact)
    where = "held-out batches" if parting.apart else "the only batch"
    return Row(
        BatchNormStatistics.name,
        node.name,
        module_path(node),
        decibels(signal, before),
        decibels(signal, after),
        kept,
        f"{'less' if kept else 'no less'} error on {where}",
        time.perf_counter() - start,
    )


def _inputs(walk: Walk, node: Node) -> Iterator[Pair]:
    """What a norm reads, by own batch."""
    x = ops.argument(node, "input")
    if x.op == "placeholder":
        yield from zip(walk.values(FLOAT, x), walk.values(ROUNDED, x), strict=True)
        return
    lanes = [walk.replay([x], walk.lanes[name]) for name in (FLOAT, ROUNDED)]
    yield from ((a[x], b[x]) for a, b in zip(*lanes, strict=True))


def _sums(x: Tensor) -> Sums:
    """Of each channel of one value, and how many numbers were added."""
    channels = x.movedim(1, -1).reshape(-1, x.shape[1]).double()
    return channels.sum(0), channels.square().sum(0), len(channels)


def _moments(sums: Iterable[Sums]) -> Pair:
    """Mean and variance of each channel over all values, from the sums of each in order."""
    total = squares = torch.zeros((), dtype=torch.float64)
    count = 0
    for of_values, of_squares, added in sums:
        total, squares, count = total + of_values, squares + of_squares, count + added
    mean = total / max(count, 1)
    return mean, (squares / max(count, 1) - mean.square()).clamp(min=0)


@dataclass(frozen=True)
class _Norm:
    """A batch norm and its statistics in the quantized model."""

    node: Node
    values: dict[Node, Any]
    mean: Tensor
    variance: Tensor

    @classmethod
    def of(cls, walk: Walk, node: Node) -> _Norm:
        sources = [ops.argument(node, name) for name in STATISTICS]
        if any(not isinstance(s, Node) or s.op != "get_attr" for s in sources):
            raise Declined("it has no statistics of its own")
        if ops.argument(node, "training") or any(len(s.users) > 1 for s in sources):
            raise Declined("its statistics move, or are read by another operator as well")
        x = ops.argument(node, "input")
        runner = Runner(walk.program, walk.lanes[ROUNDED])
        constants = [n for n in node.all_input_nodes if n is not x]
        if any(walk.schedule.is_value(n) for n in constants):
            raise Declined("its factors are computed from the inputs")
        values = {n: runner.constant(walk.program.model, n) for n in constants}
        return cls(node, values, values[sources[0]], values[sources[1]])

    def run(self, x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        given = dict(self.values)
        for name, value in zip(STATISTICS, (mean, variance), strict=True):
            given[ops.argument(self.node, name)] = value
        given[ops.argument(self.node, "input")] = x
        args, kwargs = map_arg((self.node.args, self.node.kwargs), given.__getitem__)
        y: Tensor = self.node.target(*args, **kwargs)  # type: ignore[operator]
        return y

    def matched(self, floating: Pair, rounded: Pair) -> Pair:
        """The statistics with which the quantized inputs give the float outputs' moments."""
        ratio = torch.where(
            (floating[1] > 0) & (rounded[1] > 0), rounded[1] / floating[1].clamp(min=1e-30), 1.0
        )
        mean = rounded[0] + (self.mean.double() - floating[0]) * ratio.sqrt()
        variance = self.variance.double() * ratio
        return mean.to(self.mean.dtype), variance.to(self.variance.dtype)

    def replace(self, walk: Walk, found: Pair) -> None:
        model = walk.model
        assert isinstance(model, QuantGraphModule)
        for name, value in zip(STATISTICS, found, strict=True):
            target = str(ops.argument(self.node, name).target)
            replace_float(model, ((model, target),), value)
