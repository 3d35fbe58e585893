"""The walk: a program on several batches in several lanes, forward from stop to stop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from pt2q.algorithms.engine.lane import Lane, Place
from pt2q.algorithms.engine.program import Program, Schedule
from pt2q.algorithms.engine.runner import Runner, Taps, Values
from pt2q.algorithms.engine.store import Files, Memory, Store
from pt2q.distributed import ALONE, Ranks, together
from pt2q.errors import DataError
from pt2q.ir.graph import get_constant, holds_tensor
from pt2q.ir.model_state import KeptState
from pt2q.ir.module import QuantGraphModule
from pt2q.ir.module.batch_call import placed
from pt2q.ir.storage import copies, is_low, release, storage_of
from pt2q.ir.torch_private import pytree

T = TypeVar("T")

FLOAT, ROUNDED = "float", "rounded"


class Walk(AbstractContextManager["Walk"]):
    """A run of a prepared module that stops where it is asked to; see `pt2q.algorithms.engine`.

    Args:
        model: a prepared module; it is not changed, and may be changed between stops.
        batches: each a tensor, a tuple of arguments or a dict by their names; read once.
        lanes: what runs; the floating and the rounding one if not given.
        spill: keep values in files: True, or the folder in which to make a temporary one.
        seed: of operators that draw random numbers.
        store: keeps values, in the place of what ``spill`` says.
        ranks: the processes that walk together, all with the same model and batches; each holds the
            values of its own batches alone. Batches of a model that hands state from one to the
            next are everybody's.

    Raises:
        DataError: there is no batch, or one is not a call of the model.
        DistributedError: another process failed.
    """

    def __init__(
        self,
        model: QuantGraphModule,
        batches: Iterable[Any],
        lanes: Sequence[Lane] | None = None,
        *,
        spill: bool | str | Path = False,
        seed: int = 0,
        ranks: Ranks = ALONE,
        store: Store | None = None,
    ) -> None:
        self.program = Program(model)
        self.ranks = ALONE if self.schedule.state else ranks
        chosen = (Lane.floating(), Lane.rounding()) if lanes is None else lanes
        self.lanes = {lane.name: lane for lane in chosen}
        self.seed = seed
        self.position = 0
        self.most = 0
        self.store: Store = _store(spill) if store is None else store
        self.results: dict[str, list[Any]] = {name: [] for name in self.lanes}
        try:
            for lane in self.lanes.values():
                lane.hold(_constants(self.program) if lane.keeps else {})
                lane.hold(_own_tensors(self.program))
            self.count = together(self.ranks, lambda: self._read(batches))
        except BaseException:
            self.close()
            raise

    @property
    def model(self) -> GraphModule:
        """What is run."""
        return self.program.model

    @property
    def schedule(self) -> Schedule:
        """That of the outermost graph."""
        return self.program.schedule

    @torch.no_grad()
    def _read(self, batches: Iterable[Any]) -> int:
        count = 0
        for count, batch in enumerate(batches, 1):
            if not self._is_own(count - 1):
                continue
            values = placed(self.model, batch)
            read = {node: value for node, value in values.items() if node.users}
            written = {
                n: v for n, v in read.items() if self.schedule.root[n] in self.schedule.written
            }
            for name in self.lanes:
                self._put((name, count - 1), {**read, **_copied(written)}, 0)
        if count == 0:
            raise DataError("there is no batch: give at least one to run the model on")
        return count

    # -------------------------------------------------------------- several processes

    def _owner(self, batch: int) -> int:
        """The process that holds a batch; every fourth, which judges, goes round as others do."""
        return (batch + batch // 4) % self.ranks.size

    def _is_own(self, batch: int) -> bool:
        return self._owner(batch) == self.ranks.rank

    def own(self, batches: Sequence[int] | None = None) -> list[int]:
        """Those batches that this process holds.

        Args:
            batches: among which; all if not given.
        """
        return [b for b in (range(self.count) if batches is None else batches) if self._is_own(b)]

    def shared(self, made: Iterable[T], batches: Sequence[int] | None = None) -> Iterator[T]:
        """What all processes made of their batches, in the order of the batches.

        Args:
            made: what this one makes of each of its `own`, in their order.
            batches: of which; all if not given.
        """
        if self.ranks.size == 1:
            return iter(made)  # one by one, as they are asked for
        found = [iter(part) for part in self.ranks.share(lambda: list(made))]
        wanted = range(self.count) if batches is None else batches
        return (next(found[self._owner(batch)]) for batch in wanted)

    # -------------------------------------------------------------- going on

    def advance(self, node: Node, progress: Callable[[int], None] | None = None) -> None:
        """Run all that comes before a node, in every lane, on every batch.

        Where a written tensor of the module forbids a stop there, the walk stops earlier;
        `replay` then reaches the node.

        Args:
            node: of the outermost graph, not before where the walk stands.
            progress: is called with the position reached, after each lane and batch.
        """
        position = self.schedule.position[node]
        assert position >= self.position, "a walk does not go back"
        self._run_to(self.schedule.cut_before(position), progress)

    def finish(
        self,
        progress: Callable[[int], None] | None = None,
        stopped: Callable[[], None] | None = None,
    ) -> dict[str, list[Any]]:
        """Run to the end.

        Args:
            progress: is called with the position reached, after each lane and batch.
            stopped: is called at each stop on the way, and at the end.

        Returns:
            By lane, the result of each of its `own` batches, in the structure that the model gives.
        """
        begins = min(self.ranks.gather(self.position))
        for stop in self._stops(begins):
            if stop <= self.position:  # this process was there before it was stopped
                together(self.ranks, lambda: None)
                continue
            self._run_to(stop, progress)
            if stopped is not None:
                stopped()
        return self.results

    def _stops(self, begins: int) -> list[int]:
        """The positions behind one to run to, the end last."""
        end = len(self.schedule.nodes)
        cuts = map(self.schedule.cut_before, self._first_reads() if is_low() else ())
        return sorted({cut for cut in cuts if cut > begins} | ({end} if end > begins else set()))

    def _first_reads(self) -> Iterator[int]:
        """The positions before which a constant is read that is not in use yet."""
        seen: set[Node] = set()
        for place, node in enumerate(self.schedule.nodes):
            read = {n for n in node.all_input_nodes if n in self.schedule.constants} - seen
            seen |= read
            if self.schedule.is_value(node) and read:
                yield place

    @torch.no_grad()
    def _run_to(self, stop: int, progress: Callable[[int], None] | None) -> None:
        if stop == self.position:
            return
        nodes = self.schedule.nodes[self.position : stop]
        needed, last, made = self._traffic(nodes, stop)

        def run() -> None:
            for lane in self.lanes.values():
                runner = Runner(self.program, lane)
                for batch in self.own():
                    lane.batch = batch
                    values = self.store.take((lane.name, batch), needed, last)
                    self._run_one(runner, batch, nodes, values)
                    self._put((lane.name, batch), {n: values[n] for n in made}, stop)
                    if progress is not None:
                        progress(stop)
                self.most = max(self.most, runner.most)

        together(self.ranks, run)
        release()
        self.position = stop

    def _traffic(
        self, nodes: Sequence[Node], stop: int
    ) -> tuple[list[Node], list[Node], list[Node]]:
        """What a piece takes from the store, what of that for the last time, what it puts there."""
        schedule = self.schedule
        before, after = schedule.live(self.position), schedule.live(stop)
        needed = schedule.inputs(nodes)
        # Views of storage that is still written are kept together, and so taken together.
        touched = {schedule.root[n] for n in (*needed, *nodes)} & set(schedule.written)
        needed = [n for n in before if n in set(needed) or schedule.root[n] in touched]
        last = [n for n in needed if n not in set(after)]
        again = [n for n in needed if schedule.root[n] in touched and n in set(after)]
        return needed, last, [*again, *(n for n in after if n not in set(before))]

    def _run_one(self, runner: Runner, batch: int, nodes: Sequence[Node], values: Values) -> None:
        lane = runner.lane.name
        runner.seed = self.seed + batch * len(self.schedule.nodes)
        elsewhere = len(self.store.names((lane, batch)) - set(values))
        runner.run(self.program.model, nodes, values, nodes[-1:], elsewhere)
        if nodes[-1].op == "output":
            self.results[lane].append(self._result(values.pop(nodes[-1])))

    def _result(self, flat: Any) -> Any:
        """A result as the model gives it; tensors of the module, which move on, are copied."""
        held = {storage_of(t) for lane in self.lanes.values() for t in lane.own.values()}
        fixed = pytree.tree_map_only(
            Tensor, lambda t: t.clone() if storage_of(t) in held else t, flat
        )
        return self.model.graph.process_outputs(fixed)

    def _put(self, key: tuple[str, int], values: Mapping[Node, Any], position: int) -> None:
        """Keep values, views of storage that is written later in one group."""
        groups: dict[Node, Values] = {}
        for node, value in values.items():
            root = self.schedule.root[node]
            shared = self.schedule.written.get(root, -1) >= position
            groups.setdefault(root if shared else node, {})[node] = value
        self.store.put(key, list(groups.values()))

    # -------------------------------------------------------------- looking

    def values(self, lane: str, node: Node) -> Iterator[Any]:
        """A value that was computed and is still to be read, of each of its `own` batches."""
        for batch in self.own():
            yield self.store.take((lane, batch), [node])[node]

    @torch.no_grad()
    def replay(
        self,
        targets: Sequence[Node],
        lane: Lane,
        of: str | None = None,
        taps: Taps | None = None,
        batches: Sequence[int] | None = None,
    ) -> Iterator[Values]:
        """Run part of what is to come, without moving on.

        Args:
            targets: nodes of the outermost graph from where the walk stands on.
            lane: says who rounds, and which tensors are read.
            of: the lane whose values it starts from; that of the same name if not given.
            taps: watches nodes on the way.
            batches: which; all if not given.

        Yields:
            The targets' values, of each of those batches that are its `own`.
        """
        nodes = self.schedule.needed(targets, self.position)
        scratch = lane.fork()
        scratch.hold(_copied({k: v for k, v in lane.own.items() if k in self._state()}))
        runner = Runner(self.program, scratch, taps)
        wanted = self.own(batches)
        moves_state = any(node in self.schedule.state for n in nodes for node in n.all_input_nodes)
        for batch in range(self.count) if moves_state else wanted:
            values = self.store.take((of or lane.name, batch), self.schedule.inputs(nodes))
            if self.schedule.writes(self.position, self.schedule.position[nodes[-1]]):
                values = _copied(values)
            runner.seed = self.seed + batch * len(self.schedule.nodes)
            runner.run(self.program.model, nodes, values, targets)
            if batch in wanted:
                yield {node: values[node] for node in targets}

    def _state(self) -> set[Place]:
        return {(self.model, str(node.target)) for node in self.schedule.state}

    def refresh(self) -> None:
        """Read the graph anew: nodes were added where the walk stands or after that."""
        at = self.schedule.nodes[self.position]
        self.program = Program(self.program.model)
        self.position = self.schedule.position[at]

    def forget(self, observers: Iterable[Any]) -> None:
        """Say that observers have changed, or the weights that they watch."""
        found = list(observers)
        for lane in self.lanes.values():
            lane.forget(found)

    def close(self) -> None:
        """Drop all values; temporary files go."""
        self.store.close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _store(spill: bool | str | Path) -> Store:
    return Memory() if spill is False else Files(None if spill is True else spill)


def _copied(values: Mapping[Any, Any]) -> dict[Any, Any]:
    """Copies of tensors, sharing storage as these do; other things as they are."""
    leaves, spec = pytree.tree_flatten(list(values.values()))
    tensors = {str(i): leaf for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}
    copied = copies(tensors)
    changed = [copied.get(str(i), leaf) for i, leaf in enumerate(leaves)]
    return dict(zip(values, pytree.tree_unflatten(changed, spec), strict=True))


def _constants(program: Program) -> dict[Place, Tensor]:
    """The tensors that the graphs read, as they are."""
    places = {
        (module, str(node.target))
        for module, schedule in program.schedules.items()
        for node in schedule.nodes
        if node.op == "get_attr" and holds_tensor(module, node)
    }
    return {(module, name): get_constant(module, name).detach() for module, name in places}


def _own_tensors(program: Program) -> dict[Place, Tensor]:
    """Copies of the tensors that a lane writes into, as they were when the model was prepared."""
    model = program.model
    kept = model.record.get(KeptState) if isinstance(model, QuantGraphModule) else None
    noted = {} if kept is None else kept.values
    names = [str(node.target) for node in program.schedule.state]
    tensors = {name: noted.get(name, get_constant(model, name)) for name in names}
    return {(model, name): value for name, value in copies(tensors).items()}
