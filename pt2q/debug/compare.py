"""Run a float and a quantized model side by side and say where they part.

Four runs per batch. The float model and the quantized one, each on its own values: their
difference at a node is the *total* error, in which all that comes before has its part. Then both
again with every value that they have in common replaced by the float model's value, rounded as the
quantized model rounds it: what an operator then adds is its *local* error. Both operators read the
same numbers, so the rounding of a value counts for the operator that made the value and for nobody
after it; what remains is the rounding of weights and results, and integer arithmetic.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from pt2q.debug.identity import Key, Origin, handles_of, value_nodes
from pt2q.debug.report import Comparison, ComparisonRow, Unmatched
from pt2q.debug.rounding import (
    Rounding,
    RoundingRow,
    RoundingStats,
    own_roundings,
    rounding_calls,
    rounding_of,
    to_integers,
    to_reals,
)
from pt2q.debug.runner import Runner, load_state, own_copy, read_state
from pt2q.debug.stats import Running, mismatch
from pt2q.debug.weights import WeightRow, quantized_weights
from pt2q.errors import ComparisonError
from pt2q.ir import ops
from pt2q.ir.control_flow import named_graph_modules
from pt2q.ir.graph import get_constant, module_path
from pt2q.ir.module import InputCheck, QuantGraphModule, Stage
from pt2q.ir.storage import StorageMap
from pt2q.passes.reference.rewrite import ReferenceReport
from pt2q.passes.reference.values import QParams

Place = tuple[str, Node]
Model = ExportedProgram | GraphModule


def compare(float_model: Model, quantized_model: Model, inputs: Any) -> Comparison:
    """Say, operator by operator, where a quantized model departs from its float model.

    Neither model is changed, buffers that they write included; both start from the buffers that
    the float model has now, and run in evaluation mode. The values of one batch are held at a
    time; of those before only sums remain.

    Args:
        float_model: what ``torch.export.export`` gave, or its ``.module()``.
        quantized_model: made of it by `prepare_pt2e`, `prepare_qat_pt2e` or `convert_pt2e`
            (in the reference representation, too), or exported anew since then.
        inputs: the positional arguments of one call as a tuple (one tensor alone is fine), or an
            iterable of batches, each of which is a tensor, a tuple of positional arguments or a
            dict of keyword arguments.

    Returns:
        The report. Printing it gives a table; ``worst()`` gives the culprits.

    Raises:
        NotExportedError: a model was not captured with ``torch.export``.
        ComparisonError: the two have nothing in common, there is no batch, or a batch does not
            fit the model.
    """
    job = _Comparison(float_model, quantized_model)
    for batch in _batches(inputs):
        job.add(batch)
    return job.report()


# ------------------------------------------------------------------ inputs


def _batches(inputs: Any) -> Iterator[Any]:
    if isinstance(inputs, Tensor | tuple | Mapping):
        yield inputs
    elif isinstance(inputs, Iterable):
        yield from inputs
    else:
        raise ComparisonError(
            f"inputs must be a tuple of arguments or an iterable of batches, found "
            f"{type(inputs).__name__}"
        )


def _leaves(batch: Any, check: InputCheck) -> list[Any]:
    """The inputs of a call, flat."""
    if isinstance(batch, Mapping):
        args: tuple[Any, ...] = ()
        kwargs = dict(batch)
        if set(kwargs) == set(check.keywords):
            kwargs = {name: kwargs[name] for name in check.keywords}
        elif set(kwargs) == set(check.names):
            kwargs = {name: kwargs[name] for name in check.names}
    else:
        args, kwargs = batch if isinstance(batch, tuple) else (batch,), {}
        args = tuple(args)
    leaves = pytree.tree_leaves((args, kwargs))
    if len(leaves) != len(check.names):
        raise ComparisonError(
            f"the model takes {len(check.names)} input(s) {list(check.names)}, a batch holds "
            f"{len(leaves)}. A tuple is the arguments of one call; several batches come as a list "
            "of tuples"
        )
    check(None, args, kwargs)  # type: ignore[arg-type]
    return leaves


# ------------------------------------------------------------------ places


@dataclass
class _Site:
    """One value that both models have.

    Args:
        key: its identity.
        here: where the float model computes it.
        there: where the quantized one does.
        rounding: what its readers see of it, as a function; None if they see it as it is.
        stored: what its integers stand for, where it is a tensor of integers.
        written_here, written_there: whether a model writes into its memory.
        total, local: the sums so far.
        calls: how often the float model computed it.
        reason: why the two cannot be compared, or "".
    """

    key: Key
    here: Place
    there: Place
    rounding: Rounding | None = None
    stored: QParams | None = None
    written_here: bool = False
    written_there: bool = False
    total: Running = field(default_factory=Running)
    local: Running = field(default_factory=Running)
    calls: int = 0
    reason: str = ""

    def seen(self, value: Any) -> Any:
        """What readers get of a value of the quantized model, in real numbers."""
        if self.stored is not None:
            return to_reals(value, self.stored) if isinstance(value, Tensor) else value
        if self.rounding is None or not _is_real(value):
            return value
        return self.rounding(value)

    def rounded(self, value: Any) -> Any:
        """What readers get of a value of the float model."""
        if self.stored is not None and _is_real(value):
            return to_reals(to_integers(value, self.stored), self.stored).to(value.dtype)
        return value if self.rounding is None or not _is_real(value) else self.rounding(value)

    def written(self, value: Any) -> Any:
        """A float value as the quantized model holds it at this place."""
        if self.stored is not None and _is_real(value):
            return to_integers(value, self.stored)
        return self.rounded(value)


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


class _Comparison:
    """The two models, what they have in common, and the sums so far."""

    def __init__(self, float_model: Model, quantized_model: Model) -> None:
        self.floating, self.state = own_copy(float_model)
        self.shadow, _ = own_copy(float_model)
        self.quantized, written = own_copy(quantized_model)
        self.forced, _ = own_copy(quantized_model)
        self.notes: list[str] = []
        self._check_stages()
        self.check = InputCheck.of(self.floating.graph)
        self.handles = handles_of(self.floating) & handles_of(self.quantized)
        self.common = self._common_state(written)
        self._match()
        self.runners = [
            Runner(m) for m in (self.floating, self.quantized, self.shadow, self.forced)
        ]
        self.stats = self._stats()
        self.outputs: list[Running | None] | None = None
        self.parted: dict[str, list[int]] = {}
        self.batches = 0

    def _check_stages(self) -> None:
        if self.floating.record.stage is not Stage.FLOAT:
            raise ComparisonError(
                f"the first model must be the float one, it is {self.floating.record.stage.value}"
            )
        if self.quantized.record.stage is Stage.PREPARED:
            self.notes.append(
                "the quantized model is prepared and not converted: its observers round nothing"
            )

    def _common_state(self, written: tuple[str, ...]) -> tuple[str, ...]:
        """Buffers that both models write: they start alike, and follow the float model's."""
        common = []
        for name in written:
            own = get_constant(self.quantized, name)
            try:
                other = get_constant(self.floating, name)
            except (AttributeError, TypeError):
                other = None
            if other is not None and (own.shape, own.dtype) == (other.shape, other.dtype):
                common.append(name)
            else:
                self.notes.append(
                    f"buffer {name}: the quantized model writes it and the float one has none of "
                    "its shape and type, so it keeps what it holds"
                )
        load_state(self.quantized, read_state(self.floating, common))
        return tuple(common)

    # -------------------------------------------------------------- matching

    def _match(self) -> None:
        here = value_nodes(self.floating, self.handles)
        there = {key: place for place, key in value_nodes(self.quantized, self.handles).items()}
        stored = self._stored()
        there |= {key: place for key, (place, _) in stored.items()}
        copies = dict(named_graph_modules(self.quantized))
        storage, own = _storage(self.quantized), _storage(self.floating)
        self.belongs: dict[Place, Place] = {}
        self.sites: list[_Site] = []
        self.alone: list[Place] = []
        for place, key in here.items():
            if key not in there or (key not in stored and _are_sums(place[1], there[key][1])):
                self.alone.append(place)
                continue
            path, node = there[key]
            site = _Site(key, place, (path, node))
            site.stored = stored[key][1] if key in stored else None
            site.written_here = own[place[0]].is_mutated(place[1])
            site.written_there = storage[path].is_mutated(node)
            calls = own_roundings(copies[path], node, storage[path])
            if calls and site.stored is None:
                site.rounding = rounding_of(copies[path], calls[0])
                self.belongs |= {(path, call): (path, node) for call in calls}
            self.sites.append(site)
        self.extra = [place for key, place in there.items() if key not in set(here.values())]
        if not any(site.here[1].op == "call_function" for site in self.sites):
            raise ComparisonError(
                "the models have no operator in common: is the second made of the first?"
            )

    def _stored(self) -> dict[Key, tuple[Place, QParams]]:
        """Values that are integers in the reference representation."""
        found: dict[Key, tuple[Place, QParams]] = {}
        for path, module in named_graph_modules(self.quantized):
            assert isinstance(module, QuantGraphModule)  # own_copy made it
            record = module.record.get(ReferenceReport)
            if record is None:
                continue
            nodes = {node.name: node for node in module.graph.nodes}
            for value in record.stored:
                by_handle = value.handle is not None and value.handle in self.handles
                key: Key = value.handle if by_handle else Origin(value.origin, path)  # type: ignore[assignment]
                if value.node in nodes:
                    found[key] = ((path, nodes[value.node]), value.params)
        return found

    def _stats(self) -> dict[tuple[str, str], RoundingStats]:
        return {
            (path, node.name): RoundingStats(node, module)
            for path, module in named_graph_modules(self.quantized)
            for node in rounding_calls(module)
        }

    # -------------------------------------------------------------- running

    def add(self, batch: Any) -> None:
        """Run both models on one batch, twice."""
        leaves = _leaves(batch, self.check)
        floating, quantized, shadow, forced = self.runners
        start = read_state(self.floating, self.state)
        run = _Batch(self.sites)
        reference = floating(_own_leaves(leaves), run.record)
        outputs = quantized(_own_leaves(leaves), self._counting(run.compare_total))
        self._compare_outputs(reference, outputs)
        self._compare_calls(floating, quantized)
        load_state(self.shadow, start)
        shadow(_own_leaves(leaves), run.force_float)
        load_state(self.forced, {name: start[name] for name in self.common if name in start})
        forced(_own_leaves(leaves), run.compare_local)
        self.batches += 1

    def _counting(self, visit: Callable[..., Any]) -> Callable[..., Any]:
        def counted(path: str, call: int, node: Node, args: tuple[Any, ...], value: Any) -> Any:
            stats = self.stats.get((path, node.name))
            if stats is not None:
                stats.add(args)
            return visit(path, call, node, args, value)

        return counted

    def _compare_outputs(self, reference: list[Any], outputs: list[Any]) -> None:
        if self.outputs is None:
            self.outputs = [Running() if isinstance(v, Tensor) else None for v in reference]
        for running, one, other in zip(self.outputs, reference, outputs, strict=False):
            if running is not None and not mismatch(one, other):
                running.add(one, other)

    def _compare_calls(self, floating: Runner, quantized: Runner) -> None:
        for path in floating.calls.keys() | quantized.calls.keys():
            counts = self.parted.setdefault(path, [0, 0])
            counts[0] += floating.calls[path]
            counts[1] += quantized.calls[path]

    # -------------------------------------------------------------- reporting

    def report(self) -> Comparison:
        """What was found.

        Raises:
            ComparisonError: nothing was run.
        """
        if not self.batches:
            raise ComparisonError("there was no batch to compare on")
        unmatched = self._extra()
        weights = self._weights(unmatched)
        rounded, included, rows = self._roundings(), self._included(unmatched), []
        for site in self.sites:
            row = self._row(
                site, weights.get(site.there, {}), rounded.get(site.there, []), included
            )
            if site.reason:
                unmatched.append(Unmatched(_name(site.there), "quantized", site.reason))
            if row is not None:
                rows.append(row)
        outputs = tuple(None if r is None else r.result() for r in self.outputs or ())
        notes = (*self.notes, *self._parted(), *self._integer_weights())
        return Comparison(tuple(rows), outputs, tuple(unmatched), notes, self.batches)

    def _row(
        self,
        site: _Site,
        weights: dict[str, WeightRow],
        roundings: list[RoundingRow],
        included: dict[Place, list[str]],
    ) -> ComparisonRow | None:
        node = site.here[1]
        is_operator = node.op == "call_function" and node.target is not ops.GETITEM
        if not is_operator and not roundings:
            return None
        return ComparisonRow(
            _name(site.here),
            _operator(node),
            module_path(node),
            _name(site.there),
            site.calls,
            site.local.result(),
            site.total.result(),
            tuple(roundings),
            tuple(weights.values()),
            tuple(included.get(site.here, ())),
        )

    def _weights(self, unmatched: list[Unmatched]) -> dict[Place, dict[str, WeightRow]]:
        """Weights by the value that is computed with them, and by name."""
        places = {site.there for site in self.sites}
        found: dict[Place, dict[str, WeightRow]] = {}
        for weight in quantized_weights(self.floating, self.quantized):
            place = _reader(weight.path, weight.node, places)
            if weight.row is not None:
                found.setdefault(place, {})[weight.name] = weight.row
            elif weight.reason:
                unmatched.append(Unmatched(_name(place), "quantized", weight.reason))
        return found

    def _roundings(self) -> dict[Place, list[RoundingRow]]:
        """Roundings by the value they belong to: their own, else the reader's."""
        places = {site.there for site in self.sites}
        found: dict[Place, list[RoundingRow]] = {}
        for (path, _), stats in self.stats.items():
            row = stats.row(path)
            own = self.belongs.get((path, stats.node))
            if row is not None and (own is None or own not in found):
                place = _reader(path, stats.node, places) if own is None else own
                found.setdefault(place, []).append(row)
        return found

    def _included(self, unmatched: list[Unmatched]) -> dict[Place, list[str]]:
        """Values that only the float model has, by the one that they are computed for.

        Args:
            unmatched: takes those that are computed for none, or for several.
        """
        matched = {site.here for site in self.sites}
        found: dict[Place, list[str]] = {}
        for path, node in self.alone:
            if node.op != "call_function" or node.target is ops.GETITEM:
                continue
            readers = _first_readers(path, node, matched)
            if len(readers) == 1:
                found.setdefault(next(iter(readers)), []).append(path + node.name)
                continue
            names = ", ".join(sorted(map(_name, readers)))
            reason = "the quantized model has no such value"
            reason += f"; it counts with its readers {names}" if names else ""
            unmatched.append(Unmatched(path + node.name, "float", reason))
        return found

    def _extra(self) -> list[Unmatched]:
        reason = "the float model has no such value"
        places = [place for place in self.extra if place[1].op == "call_function"]
        return [Unmatched(_name(place), "quantized", reason) for place in places]

    def _parted(self) -> list[str]:
        return [
            f"{path.rstrip('.')}: run {here} times in float and {there} times quantized, because "
            "a decision fell differently; total errors pair calls in order"
            for path, (here, there) in sorted(self.parted.items())
            if here != there
        ]

    def _integer_weights(self) -> list[str]:
        if not any(m.record.get(ReferenceReport) for m in _own_modules(self.quantized)):
            return []
        return [
            "in the reference representation weights are part of integer arithmetic: they are "
            "those of convert_pt2e(prepared), with which their errors can be had"
        ]


def _are_sums(here: Node, there: Node) -> bool:
    """Whether a real value is held as integers of which nothing is known."""
    one, other = here.meta.get("val"), there.meta.get("val")
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return False
    return one.is_floating_point() and not other.is_floating_point()


def _first_readers(path: str, node: Node, places: set[Place]) -> set[Place]:
    """The values among ``places`` that are computed from one, directly or through others."""
    waiting, seen, found = deque(node.users), set(), set()
    while waiting:
        at = waiting.popleft()
        if (path, at) in places:
            found.add((path, at))
        elif at not in seen:
            seen.add(at)
            waiting.extend(at.users)
    return found


def _operator(node: Node) -> str:
    if node.op != "call_function":
        return "input"
    return "getitem" if node.target is ops.GETITEM else str(node.target)


def _reader(path: str, call: Node, places: set[Place]) -> Place:
    """The first value that a call gives, or that is computed from what it gives."""
    waiting, seen = deque([call]), set()
    while waiting:
        at = waiting.popleft()
        if (path, at) in places:
            return path, at
        if at not in seen:
            seen.add(at)
            waiting.extend(at.users)
    return path, call


def _storage(model: QuantGraphModule) -> dict[str, StorageMap]:
    return {path: StorageMap.of(module.graph) for path, module in named_graph_modules(model)}


def _own_modules(model: QuantGraphModule) -> list[QuantGraphModule]:
    found = (module for _, module in named_graph_modules(model))
    return [module for module in found if isinstance(module, QuantGraphModule)]


def _own_leaves(leaves: list[Any]) -> list[Any]:
    """Copies, because a model may write into its inputs."""
    return [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]


def _name(place: Place) -> str:
    return place[0] + place[1].name


# ------------------------------------------------------------------ one batch


class _Batch:
    """The values of one batch."""

    def __init__(self, sites: list[_Site]) -> None:
        self.here = {_tag(site.here): site for site in sites}
        self.there: dict[tuple[str, str], list[_Site]] = {}
        for site in sites:
            self.there.setdefault(_tag(site.there), []).append(site)
        self.values: dict[tuple[Key, int], Any] = {}
        self.references: dict[tuple[Key, int], Any] = {}

    def record(self, path: str, call: int, node: Node, args: Any, value: Any) -> Any:
        """Float, on its own values: keep them."""
        site = self.here.get((path, node.name))
        if site is not None:
            site.calls += 1
            self.values[site.key, call] = _snapshot(value, site.written_here)
        return value

    def compare_total(self, path: str, call: int, node: Node, args: Any, value: Any) -> Any:
        """Quantized, on its own values."""
        for site in self.there.get((path, node.name), ()):
            if (site.key, call) in self.values:
                reference = self.values[site.key, call]
                site.reason = site.reason or site.total.add(reference, site.seen(value))
        return value

    def force_float(self, path: str, call: int, node: Node, args: Any, value: Any) -> Any:
        """Float, on the rounded values of `record`: what it computes is the reference."""
        site = self.here.get((path, node.name))
        if site is None or (site.key, call) not in self.values:
            return value
        self.references[site.key, call] = _snapshot(value, site.written_here)
        return _replace(value, site.rounded(self.values[site.key, call]), site.written_here)

    def compare_local(self, path: str, call: int, node: Node, args: Any, value: Any) -> Any:
        """Quantized, on the same values."""
        for site in self.there.get((path, node.name), ()):
            if (site.key, call) not in self.references:
                continue
            reference = self.references.pop((site.key, call))
            site.local.add(reference, site.seen(value))
            known = self.values.pop((site.key, call))
            if not mismatch(known, site.seen(value)):
                value = _replace(value, site.written(known), site.written_there)
        return value


def _tag(place: Place) -> tuple[str, str]:
    return place[0], place[1].name


def _snapshot(value: Any, is_written: bool) -> Any:
    """The value as it is now, whatever is written into it later."""
    return pytree.tree_map_only(Tensor, Tensor.clone, value) if is_written else value


def _replace(value: Any, wanted: Any, is_written: bool) -> Any:
    """Put another value in the place of one; into its memory, where others look into that."""
    if not is_written:
        return pytree.tree_map(_in_type, wanted, value)
    for old, new in zip(pytree.tree_leaves(value), pytree.tree_leaves(wanted), strict=True):
        if isinstance(old, Tensor) and not _overlaps_itself(old):
            old.copy_(new)
    return value


def _in_type(wanted: Any, value: Any) -> Any:
    return wanted.to(value.dtype) if isinstance(wanted, Tensor) else wanted


def _overlaps_itself(tensor: Tensor) -> bool:
    """Whether elements share memory, as those of an expanded tensor do."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return any(stride == 0 and size > 1 for size, stride in sizes)
