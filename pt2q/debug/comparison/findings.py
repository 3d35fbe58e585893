"""What four runs found, put at the values it belongs to: the rows of a comparison."""

from __future__ import annotations

from torch.fx import Node

from pt2q.debug import reasons
from pt2q.debug.comparison.common_value import CommonValue
from pt2q.debug.comparison.comparison import Comparison
from pt2q.debug.comparison.four_runs import FourRuns
from pt2q.debug.comparison.matching import own_modules
from pt2q.debug.comparison.places import Place, nearest_readers, place_name, reader_of
from pt2q.debug.comparison.row import ComparisonRow, Unmatched
from pt2q.debug.comparison.weights import WeightRow, quantized_weights
from pt2q.debug.rounding.row import RoundingRow
from pt2q.errors import ComparisonError
from pt2q.ir import ops
from pt2q.ir.graph import module_path
from pt2q.passes.reference import ReferenceReport


def comparison_of(runs: FourRuns) -> Comparison:
    """What was found.

    Raises:
        ComparisonError: nothing was run.
    """
    if not runs.batches:
        raise ComparisonError("there was no batch to compare on")
    findings = _Findings(runs)
    rows = tuple(row for value in runs.matching.common if (row := findings.row(value)) is not None)
    outputs = tuple(None if sums is None else sums.result() for sums in runs.outputs)
    notes = (*runs.subjects.notes, *_parted(runs), *_integer_weights(runs))
    return Comparison(rows, outputs, tuple(findings.unmatched), notes, runs.batches)


class _Findings:
    """Weights, roundings and values of the float model alone, by the common value they belong to.

    Args:
        runs: all that was run.
    """

    def __init__(self, runs: FourRuns) -> None:
        self.runs = runs
        self.unmatched = _only_quantized(runs)
        self.there = {value.there for value in runs.matching.common}
        self.weights = self._weights()
        self.roundings = self._roundings()
        self.included = self._included()

    def row(self, value: CommonValue) -> ComparisonRow | None:
        """The row of one value; None for what is no operator and rounded by nobody."""
        if value.reason:
            self.unmatched.append(Unmatched(place_name(value.there), "quantized", value.reason))
        node, roundings = value.here[1], self.roundings.get(value.there, [])
        if not _is_operator(node) and not roundings:
            return None
        return ComparisonRow(
            node=place_name(value.here),
            operator=_operator(node),
            module=module_path(node),
            counterpart=place_name(value.there),
            calls=value.calls,
            local=value.local.result(),
            total=value.total.result(),
            roundings=tuple(roundings),
            weights=tuple(self.weights.get(value.there, {}).values()),
            includes=tuple(self.included.get(value.here, ())),
        )

    def _weights(self) -> dict[Place, dict[str, WeightRow]]:
        """Weights by the value that is computed with them, and by name."""
        found: dict[Place, dict[str, WeightRow]] = {}
        subjects = self.runs.subjects
        for weight in quantized_weights(subjects.floating, subjects.quantized):
            place = reader_of((weight.path, weight.node), self.there)
            if weight.row is not None:
                found.setdefault(place, {})[weight.name] = weight.row
            elif weight.reason:
                self.unmatched.append(Unmatched(place_name(place), "quantized", weight.reason))
        return found

    def _roundings(self) -> dict[Place, list[RoundingRow]]:
        """Roundings by the value they belong to: their own, else the reader's."""
        found: dict[Place, list[RoundingRow]] = {}
        for (path, _), sums in self.runs.roundings.items():
            row, call = sums.row(path), (path, sums.node)
            own = self.runs.matching.rounded_value.get(call)
            if row is None or (own is not None and own in found):
                continue
            place = reader_of(call, self.there) if own is None else own
            found.setdefault(place, []).append(row)
        return found

    def _included(self) -> dict[Place, list[str]]:
        """Values that only the float model has, by the one that they are computed for.

        Those that are computed for none, or for several, are unmatched.
        """
        here = {value.here for value in self.runs.matching.common}
        found: dict[Place, list[str]] = {}
        for place in self.runs.matching.only_float:
            if not _is_operator(place[1]):
                continue
            readers = nearest_readers(place, here)
            if len(readers) == 1:
                found.setdefault(next(iter(readers)), []).append(place_name(place))
                continue
            names = ", ".join(sorted(map(place_name, readers)))
            reason = reasons.WITH_READERS.filled(readers=names) if names else reasons.ONLY_FLOAT
            self.unmatched.append(Unmatched(place_name(place), "float", reason))
        return found


def _is_operator(node: Node) -> bool:
    return node.op == "call_function" and node.target is not ops.GETITEM


def _operator(node: Node) -> str:
    if node.op != "call_function":
        return "input"
    return "getitem" if node.target is ops.GETITEM else str(node.target)


def _only_quantized(runs: FourRuns) -> list[Unmatched]:
    places = [place for place in runs.matching.only_quantized if place[1].op == "call_function"]
    return [Unmatched(place_name(place), "quantized", reasons.ONLY_QUANTIZED) for place in places]


def _parted(runs: FourRuns) -> list[str]:
    return [
        f"{path.rstrip('.')}: run {here} times in float and {there} times quantized, because "
        "a decision fell differently; total errors pair calls in order"
        for path, (here, there) in sorted(runs.calls.items())
        if here != there
    ]


def _integer_weights(runs: FourRuns) -> list[str]:
    modules = own_modules(runs.subjects.quantized)
    if not any(module.record.get(ReferenceReport) for _, module in modules):
        return []
    return [
        "in the reference representation weights are part of integer arithmetic: they are "
        "those of convert_pt2e(prepared), with which their errors can be had"
    ]
