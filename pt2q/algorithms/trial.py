"""Try a change that keeps the float function but moves ranges, and make it if it is worth it.

Taking a factor out of a value and putting it into the layers that read it changes nothing in float.
What changes are the ranges between: the observers there are shown the new values, fresh copies of
them for the trial, which take their places when the change is made.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from pt2q.algorithms.engine import Lane, Walk
from pt2q.algorithms.engine.lane import Place
from pt2q.algorithms.engine.rounding import is_static
from pt2q.algorithms.engine.walk import FLOAT
from pt2q.algorithms.layers import Layer, set_tensor
from pt2q.algorithms.layerwise import Declined
from pt2q.algorithms.parting import Parting
from pt2q.algorithms.pinned import PinnedObserver, replace_observer
from pt2q.distributed import Ranks, together
from pt2q.observers import HistogramObserver, MinMaxObserver


def fresh(observer: Any) -> Any:
    """A copy of an observer that has seen nothing.

    Args:
        observer: of ours, of another library or a user's; one whose range is fixed or found at run
            time is given back itself.

    Raises:
        Declined: it cannot forget what it has seen.
    """
    if not is_static(observer) or not hasattr(observer, "forward"):
        return observer
    if isinstance(observer, PinnedObserver):
        raise Declined("an algorithm has chosen its parameters already")
    made = copy.deepcopy(observer)
    forget(made)
    return made


def forget(observer: Any) -> None:
    """Let an observer forget what it has seen.

    Raises:
        Declined: it cannot.
    """
    for name in ("reset", "reset_min_max_vals"):
        method = getattr(observer, name, None)
        if callable(method):
            method()
            return
    raise Declined(f"{type(observer).__name__} cannot forget what it has seen")


def covering(observer: Any) -> Any:
    """An observer whose range covers all that it sees, for one that searches what to clip.

    Args:
        observer: any; one that does not search is given back itself.
    """
    if type(observer) is not HistogramObserver:
        return observer
    fields = ("dtype", "qscheme", "quant_min", "quant_max", "eps")
    made = MinMaxObserver(**{name: getattr(observer, name) for name in fields})
    made.node_name = observer.node_name
    return made.train(observer.training)


@dataclass(frozen=True)
class Trial:
    """A change that is not made yet.

    Args:
        walk: stands before all that is changed; it has a floating lane.
        rounding: the lane of the quantized model.
        tensors: the new weights, by all names of the old.
        weights: (observer, stand-in) of weights, which have seen the new ones.
        between: (observer, stand-in) of the values whose ranges move.
    """

    walk: Walk
    rounding: Lane
    tensors: tuple[tuple[tuple[Place, ...], Tensor], ...]
    weights: tuple[tuple[Any, Any], ...]
    between: tuple[tuple[Any, Any], ...]

    def _changed(self, lane: Lane) -> Lane:
        lane.hold({place: tensor for places, tensor in self.tensors for place in places})
        lane.substitute((*self.weights, *self.between))
        return lane

    def observe(self, nodes: Sequence[Node], parting: Parting, *, rest: bool = False) -> None:
        """Show the stand-ins what passes between in float.

        Args:
            nodes: the calls of the observers that they stand in for.
            parting: they are shown what changes are computed from.
            rest: they are shown what judges, instead.
        """
        cut = parting.to_check if rest else parting.to_fit
        shown = {id(old): new for old, new in self.between if new is not old}
        if not shown:
            return
        lane = self._changed(self.walk.lanes[FLOAT].fork())
        batches = parting.check if rest else parting.fit
        order = sorted(nodes, key=self.walk.schedule.position.__getitem__)
        rows = self.walk.replay(order, lane, batches=batches)
        # Observers of any library and in any order of batches: each process shows all to its own.
        for row in self.walk.shared(([cut(row[n]) for n in order] for row in rows), batches):
            for node, value in zip(order, row, strict=True):
                new = shown.get(id(self.walk.model.get_submodule(str(node.target))))
                if new is not None:
                    new(value)

    def outputs(self, targets: Sequence[Node], parting: Parting) -> list[Tensor]:
        """What layers give with the change, each fed from float values before it."""
        return outputs(self.walk, targets, self._changed(self.rounding.fork()), parting)

    def covering(self) -> Trial:
        """The same with ranges that cover all between.

        What is far larger than all else is clipped by a search over the values alone, however large
        the weights are that the change has given it.
        """
        return replace(self, between=tuple((old, covering(new)) for old, new in self.between))

    def make(self) -> None:
        """Make the change, in the model and in both lanes."""
        for places, tensor in self.tensors:
            set_tensor(places, tensor)
            for lane in self.walk.lanes.values():
                if lane.keeps:
                    lane.hold({place: tensor for place in places})
        for old, new in (*self.weights, *self.between):
            if new is not old:
                replace_observer(self.walk.model, old, new)
        self.rounding.forget_all()


def shown(layer: Layer, weight: Tensor) -> tuple[tuple[Any, Any], ...]:
    """Stand-ins for the observers of a weight, which have seen another weight.

    Raises:
        Declined: an observer cannot forget the old one.
    """
    pairs = [(observer, fresh(observer)) for observer in layer.observers]
    for _, new in pairs:
        new(weight)
    return tuple(pairs)


@torch.no_grad()
def outputs(walk: Walk, targets: Sequence[Node], lane: Lane, parting: Parting) -> list[Tensor]:
    """What layers give in a lane, from float values before them, of what judges here.

    Args:
        walk: stands before them; it has a floating lane.
        targets: the layers.
        lane: how they are run.
        parting: says what judges.
    """

    def run() -> list[Tensor]:
        rows = walk.replay(targets, lane, of=FLOAT, batches=parting.check)
        return [parting.to_check(row[node]) for row in rows for node in targets]

    return together(walk.ranks, run)


def noise(ranks: Ranks, exact: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """The squared difference, summed over all processes."""
    pairs = zip(exact, found, strict=True)
    return energy(ranks, [one - other for one, other in pairs])


def energy(ranks: Ranks, values: Iterable[Tensor]) -> float:
    """The sum of squares over all processes: the same however values are shared out.

    Args:
        ranks: the processes.
        values: those of this one.
    """
    own = [float(x.double().square().sum()) for x in values]
    return math.fsum(chain.from_iterable(ranks.gather(own)))
