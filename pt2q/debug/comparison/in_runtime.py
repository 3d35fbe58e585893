"""Values inside a runtime beside those of the float model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.fx import Node

from pt2q.account import Account
from pt2q.debug.comparison.batches import batches_of, own_inputs
from pt2q.debug.comparison.subjects import Model
from pt2q.debug.error import Error
from pt2q.debug.error_sums import ErrorSums
from pt2q.debug.graph_runner import GraphRunner
from pt2q.debug.own_copy import own_copy
from pt2q.errors import ComparisonError
from pt2q.ir.graph import origin_name
from pt2q.ir.module.batch_call import placed
from pt2q.tables import text_table

Values = Callable[..., Mapping[str, Tensor]]
"""Called with the inputs of one call, gives values by the name of the node that computes them."""


@dataclass(frozen=True)
class RuntimeComparison(Account):
    """How values inside a runtime differ from those of the float model.

    Args:
        errors: by name of the node, in the order of the float graph; with all that comes before.
        unmatched: values of the runtime that the float model has none of the name and shape of.
        batches: how many were run.
        what: was compared, for readers.
    """

    errors: Mapping[str, Error]
    unmatched: tuple[str, ...]
    batches: int
    what: str = "values inside the runtime"

    def worst(self, count: int) -> RuntimeComparison:
        """The values with the largest errors, the worst first.

        Args:
            count: how many.
        """
        ranked = sorted(self.errors.items(), key=lambda item: item[1].rank)
        return replace(self, errors=dict(ranked[:count]))

    def text(self, width: int | None = None) -> str:
        """A line for each value, and those that could not be compared.

        Args:
            width: columns of the terminal.
        """
        headers = "total dB", "largest difference", "node"
        rows = [(f"{e.sqnr:.1f}", f"{e.max_abs:.3g}", name) for name, e in self.errors.items()]
        table = text_table(headers, rows, right=headers[:2], width=width)
        batches = f"{self.batches} batch{'' if self.batches == 1 else 'es'}"
        end = f"{self.what}, over {batches}"
        missing = f"not compared: {', '.join(self.unmatched)}" if self.unmatched else ""
        return "\n".join(filter(None, (table, end, missing)))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists."""
        return {
            "rows": [{"node": name, "total": e.to_dict()} for name, e in self.errors.items()],
            "unmatched": list(self.unmatched),
            "batches": self.batches,
        }


def compare_in_runtime(float_model: Model, values: Values, inputs: Any) -> RuntimeComparison:
    """Say, value by value, where what a runtime computes departs from the float model.

    Args:
        float_model: what ``torch.export.export`` gave, or its ``.module()``.
        values: runs the lowered model and gives values by node, such as
            `pt2q.deploy.executorch.InnerValues` and `pt2q.deploy.onnx.InnerValues`.
        inputs: as for `compare`.

    Raises:
        NotExportedError: the model was not captured with ``torch.export``.
        ComparisonError: no value has a counterpart, or there is no batch.
    """
    floating, _ = own_copy(float_model)
    runner = GraphRunner(floating)
    sums: dict[str, ErrorSums] = {}
    unmatched: dict[str, None] = {}
    count = 0
    for batch in batches_of(inputs):
        count += 1
        leaves = list(placed(floating, batch).values())
        references = _references(runner, leaves)
        found = values(*(leaf for leaf in leaves if isinstance(leaf, Tensor)))
        unmatched.update(dict.fromkeys(_added(sums, references, found)))
    if not sums:
        raise ComparisonError(_nothing_compared(unmatched) if count else "there is no batch")
    names = {
        node.name: {node.name, origin_name(node)} & sums.keys() for node in floating.graph.nodes
    }
    results = {name: sums[known.pop()].result() for name, known in names.items() if known}
    errors = {name: error for name, error in results.items() if error is not None}
    return RuntimeComparison(errors, tuple(unmatched), count)


def _nothing_compared(unmatched: Iterable[str]) -> str:
    given = ", ".join(list(unmatched)[:3]) or "nothing"
    return (
        "the runtime gives no value that the float model has, of the same name and shape (it gives "
        f"{given}): was it made from this model?"
    )


def _references(runner: GraphRunner, leaves: list[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def keep(path: str, call: int, node: Node, args: tuple[Any, ...], value: Any) -> Any:
        if not path:
            kept = value.clone() if isinstance(value, Tensor) else value
            found[node.name] = kept
            found.setdefault(origin_name(node), kept)
        return value

    runner(own_inputs(leaves), keep)
    return found


def _added(
    sums: dict[str, ErrorSums], references: Mapping[str, Any], values: Mapping[str, Tensor]
) -> Iterable[str]:
    """Take in one batch; the names that have no counterpart."""
    for name, value in values.items():
        reference = references.get(name)
        if not isinstance(reference, Tensor) or reference.shape != value.shape:
            yield name
            continue
        sums.setdefault(name, ErrorSums()).add(reference, value)
