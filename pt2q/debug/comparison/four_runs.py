"""Four runs per batch: each model on its own values, then both on the same ones."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.fx import Node

from pt2q.debug.comparison.batch_values import BatchValues
from pt2q.debug.comparison.batches import own_inputs
from pt2q.debug.comparison.matching import Matching
from pt2q.debug.comparison.subjects import Subjects
from pt2q.debug.error_sums import ErrorSums, mismatch
from pt2q.debug.graph_runner import GraphRunner, Visit
from pt2q.debug.own_copy import load_state, read_state
from pt2q.debug.rounding.calls import rounding_calls
from pt2q.debug.rounding.sums import RoundingSums
from pt2q.ir.control_flow import named_graph_modules


class FourRuns:
    """Runs both models batch by batch and keeps sums.

    Args:
        subjects: the models.
        matching: what they have in common; its sums grow.

    The sums: ``roundings`` of the quantized model by body and node, ``outputs`` of the models'
    outputs (None for what is no tensor), ``calls`` of each body in float and quantized, and how
    many ``batches`` there were.
    """

    def __init__(self, subjects: Subjects, matching: Matching) -> None:
        self.subjects, self.matching = subjects, matching
        self.floating = GraphRunner(subjects.floating)
        self.quantized = GraphRunner(subjects.quantized)
        same = subjects.shadow is subjects.floating, subjects.forced is subjects.quantized
        self.shadow = self.floating if same[0] else GraphRunner(subjects.shadow)
        self.forced = self.quantized if same[1] else GraphRunner(subjects.forced)
        self.roundings = {
            (path, node.name): RoundingSums(node, module)
            for path, module in named_graph_modules(subjects.quantized)
            for node in rounding_calls(module)
        }
        self.outputs: list[ErrorSums | None] = []
        self.calls: dict[str, list[int]] = {}
        self.batches = 0

    def add(self, leaves: list[Any]) -> None:
        """Run both models on one batch, twice.

        Args:
            leaves: the inputs, flat.
        """
        start = read_state(self.subjects.floating, self.subjects.state)
        values = BatchValues(self.matching.common)
        reference = self.floating(own_inputs(leaves), values.record)
        outputs = self.quantized(own_inputs(leaves), self._counting(values.compare_total))
        self._add_outputs(reference, outputs)
        self._add_calls()
        load_state(self.subjects.shadow, start)
        self.shadow(own_inputs(leaves), values.force_float)
        common = {name: start[name] for name in self.subjects.common if name in start}
        load_state(self.subjects.forced, common)
        self.forced(own_inputs(leaves), values.compare_local)
        self.batches += 1

    def _counting(self, visit: Visit) -> Visit:
        def counted(path: str, call: int, node: Node, args: tuple[Any, ...], value: Any) -> Any:
            sums = self.roundings.get((path, node.name))
            if sums is not None:
                sums.add(args)
            return visit(path, call, node, args, value)

        return counted

    def _add_outputs(self, reference: list[Any], outputs: list[Any]) -> None:
        if not self.batches:
            self.outputs = [ErrorSums() if isinstance(v, Tensor) else None for v in reference]
        for sums, one, other in zip(self.outputs, reference, outputs, strict=False):
            if sums is not None and not mismatch(one, other):
                sums.add(one, other)

    def _add_calls(self) -> None:
        for path in self.floating.calls.keys() | self.quantized.calls.keys():
            counts = self.calls.setdefault(path, [0, 0])
            counts[0] += self.floating.calls[path]
            counts[1] += self.quantized.calls[path]
