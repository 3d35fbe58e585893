"""AdaRound for several layers at once, by the error of what they give together.

Li et al. 2021, "BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction",
section 3.2: the roundings of all layers of a block are learned by the error of the block's output,
so that a later layer makes up for an earlier one. Gradients pass the rounding of activations as if
it were not there (Bengio et al. 2013, "Estimating or Propagating Gradients Through Stochastic
Neurons for Conditional Computation", section 4).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.fx import Node

from pt2q.algorithms.blocks import Block, find_blocks
from pt2q.algorithms.engine import Lane, Walk
from pt2q.algorithms.engine.rounding import rounding_of
from pt2q.algorithms.engine.runner import Runner, Values
from pt2q.algorithms.engine.walk import FLOAT, ROUNDED
from pt2q.algorithms.kept import Plain
from pt2q.algorithms.layers import Layer, Passed, Use, find_layers
from pt2q.algorithms.layerwise import Declined, Proposal, Work, apply
from pt2q.algorithms.parting import Parting
from pt2q.algorithms.report import Report, Row, decibels
from pt2q.algorithms.samples import collect
from pt2q.algorithms.task import Task
from pt2q.ir.graph import is_observer_call, observed_value, value_of

Learn = Callable[["Pieces", Sequence[Work]], "list[Proposal]"]
"""Finds what becomes of a block's layers."""


@dataclass(frozen=True)
class Change:
    """What a layer multiplies by and adds, as it is or while it is learned.

    Args:
        weight: rounded already.
        bias: None leaves it as it is.
    """

    weight: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True)
class Pieces:
    """A block with what it reads and what it has to give.

    Args:
        walk: stands before it.
        block: the block.
        nodes: what runs.
        inputs: what these read in the quantized model, by batch.
        targets: what the block gives in float, by batch.
        parting: which batches are for what.
    """

    walk: Walk
    block: Block
    nodes: tuple[Node, ...]
    inputs: tuple[Values, ...]
    targets: tuple[Tensor, ...]
    parting: Parting

    @classmethod
    def of(cls, walk: Walk, block: Block, parting: Parting) -> Pieces:
        """What a walk finds where a block begins.

        Raises:
            Declined: the block writes into tensors.
        """
        last = walk.schedule.position[block.end]
        if walk.schedule.writes(walk.position, last):
            raise Declined("its block writes into a tensor")
        nodes = tuple(walk.schedule.needed([block.end], walk.position))
        read = walk.schedule.inputs(nodes)
        # Batches are drawn at random from all: each process learns the same from all of them.
        kept = (walk.store.take((ROUNDED, b), read) for b in walk.own())
        rows = walk.shared([values[n] for n in read] for values in kept)
        inputs = tuple(dict(zip(read, row, strict=True)) for row in rows)
        found = walk.replay([block.end], walk.lanes[FLOAT])
        targets = tuple(walk.shared(row[block.end] for row in found))
        return cls(walk, block, nodes, inputs, targets, parting)

    def lane(self, changes: Mapping[Layer, Change]) -> Lane:
        """The quantized model with changes, whose gradients pass the rounding of values."""
        lane = self.walk.lanes[ROUNDED].fork()
        for node in self.nodes:
            if is_observer_call(self.walk.model, node) and self.walk.schedule.is_value(node):
                observer = self.walk.model.get_submodule(str(node.target))
                rank = int(value_of(node.args[0]).dim())  # type: ignore[arg-type]
                lane.round_by(observer, _straight_through(rounding_of(observer, rank)))
        for layer, change in changes.items():
            lane.hold({place: change.weight for place in layer.places})
            for observer in layer.observers:
                lane.round_by(observer, _as_it_is)
            if change.bias is not None:
                _hold_bias(lane, layer.uses[-1], change.bias)
        return lane

    def run(self, lane: Lane, batch: int) -> Tensor:
        """What the block gives for a batch."""
        values = dict(self.inputs[batch])
        runner = Runner(self.walk.program, lane)
        runner.run(self.walk.program.model, self.nodes, values, [self.block.end])
        found: Tensor = values[self.block.end]
        return found

    @torch.no_grad()
    def noise(self, lane: Lane) -> float:
        """The squared error on what judges."""
        cut = self.parting.to_check
        return sum(
            float((cut(self.targets[b]) - cut(self.run(lane, b))).double().square().sum())
            for b in self.parting.check
        )

    @property
    def signal(self) -> float:
        """The energy of what judges."""
        cut = self.parting.to_check
        return sum(float(cut(self.targets[b]).double().square().sum()) for b in self.parting.check)


def _hold_bias(lane: Lane, use: Use, value: Tensor) -> None:
    """Let a call add another bias, through whatever would round it."""
    assert use.bias is not None
    source = observed_value(use.owner, use.bias)
    lane.hold({(use.owner, str(source.target)): value})
    at = use.bias
    while at is not source:
        lane.round_by(use.owner.get_submodule(str(at.target)), _as_it_is)
        (at,) = at.all_input_nodes


def _as_it_is(x: Tensor) -> Tensor:
    return x


def _straight_through(rounding: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: x + (rounding(x.detach()) - x.detach())


@dataclass(frozen=True)
class BlockRun:
    """Goes through the blocks of a model.

    Args:
        name: the algorithm's.
        walk: has a floating lane and a rounding one.
        most: how many layers a block has at most.
        learn: finds the weights.
        task: what was asked for.
    """

    name: str
    walk: Walk
    most: int
    learn: Learn
    task: Task

    def report(self) -> Report:
        """Change the model, block after block."""
        layers = find_layers(self.walk.program)
        parting, model = Parting.of(self.walk), self.walk.model
        alone = [x for x in layers.found if len(x.uses) == 1 and x.uses[0].owner is model]
        blocks = find_blocks(self.walk.program, alone, self.most)
        inside = {layer.name for block in blocks for layer in block.layers}
        rows: list[Row] = []
        passed = [*layers.passed, *_outside(layers.found, inside)]
        for done, block in enumerate(blocks):
            if self.task.progress is not None:
                self.task.progress(done, len(blocks), f"{self.name}: {block.name}")
            self.walk.advance(block.layers[0].uses[0].node)
            found = self.task.kept.recall(done, partial(self._solved, block, parting))
            if "row" not in found:
                passed += [Passed(layer.name, found["passed"]) for layer in block.layers]
                continue
            row = Row(**found["row"])
            if row.kept:
                for layer, change in zip(block.layers, found["changes"], strict=True):
                    apply(self.walk, layer, Proposal.of(change))
            rows.append(row)
        return Report(tuple(rows), tuple((self.name, item) for item in passed))

    @torch.no_grad()
    def _solved(self, block: Block, parting: Parting) -> Plain:
        """A row of the report with the changes, or why the block is passed over."""
        start = time.perf_counter()
        try:
            pieces = Pieces.of(self.walk, block, parting)
        except Declined as reason:
            return {"passed": str(reason)}
        works = [Work(self.walk, layer, collect(self.walk, layer, {})) for layer in block.layers]
        before = pieces.noise(pieces.lane({}))
        found = self.learn(pieces, works)
        changes = {w.layer: Change(p.rounded(w), p.bias) for w, p in zip(works, found, strict=True)}
        after = pieces.noise(pieces.lane(changes))
        kept, energy = after < before, pieces.signal
        where = "held-out batches" if parting.apart else "the only batch"
        row = Row(
            self.name,
            block.name,
            block.layers[0].module,
            decibels(energy, before),
            decibels(energy, after),
            kept,
            f"together: {'less' if kept else 'no less'} error on {where}",
            time.perf_counter() - start,
        )
        return {"row": vars(row), "changes": [p.plain() for p in found] if kept else None}


def _outside(layers: Sequence[Layer], inside: set[str]) -> Iterator[Passed]:
    for layer in layers:
        if layer.name not in inside:
            several = len(layer.uses) > 1
            yield Passed(
                layer.name, "it is called several times" if several else "no block ends behind it"
            )


def draw(pieces: Pieces, changes: Mapping[Layer, Change]) -> Tensor:
    """The mean squared error of a block on a batch drawn at random from those to compute from.

    Args:
        pieces: the block.
        changes: of its layers; gradients reach them.
    """
    fit, cut = pieces.parting.fit, pieces.parting.to_fit
    batch = fit[int(torch.randint(len(fit), ()))]
    found = pieces.run(pieces.lane(changes), batch)
    return (cut(found) - cut(pieces.targets[batch])).square().mean()
