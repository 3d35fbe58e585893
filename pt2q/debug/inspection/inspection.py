"""What a model is made of, as data and as text."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from pt2q.account import Account
from pt2q.quantizers import Report
from pt2q.tables import text_table


@dataclass(frozen=True)
class Value:
    """An input or an output.

    Args:
        name: of its node.
        dtype: of a tensor, or the type of what is none.
        shape: sizes; those that vary by name.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Operator:
    """One operator of the graph.

    Args:
        node: its name, with the body's path in front.
        operator: its target, such as ``aten.linear.default``.
        module: that it was written in, "" for the root.
        macs: its multiply-accumulates.
    """

    node: str
    operator: str
    module: str
    macs: int


@dataclass(frozen=True)
class BackendView:
    """What one backend would quantize.

    Args:
        name: the backend's.
        report: its decisions, with the reasons for what stays in float.
        macs: multiply-accumulates of the operators, as the backend's quantizer takes them apart.
    """

    name: str
    report: Report
    macs: dict[str, int]

    @property
    def share(self) -> float:
        """The share of the multiply-accumulates that would be quantized; 1 where there is none."""
        whole = sum(self.macs.values())
        quantized = sum(self.macs.get(row.node, 0) for row in self.report.quantized)
        return quantized / whole if whole else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists."""
        return {
            "quantized": len(self.report.quantized),
            "left_float": len(self.report.left_float),
            "macs_share": self.share,
            "rows": [{**row.to_dict(), "macs": self._macs(row.node)} for row in self.report],
            "reasons": [
                {
                    "code": reason.code,
                    "reason": str(reason),
                    "advice": reason.advice,
                    "nodes": [row.node for row in rows],
                    "macs": sum(self._macs(row.node) for row in rows),
                }
                for reason, rows in self.report.reasons().items()
            ],
        }

    def _macs(self, node: str) -> int:
        return self.macs.get(node, 0)


@dataclass(frozen=True)
class Inspection(Account):
    """What a model is made of, and what backends would quantize of it.

    Args:
        inputs, outputs: in the order of a call, flat.
        operators: in the order of the graph; bodies of control flow follow it.
        parameters: how many numbers its weights and buffers hold.
        parameter_bytes: what they take.
        backends: what was asked for.
    """

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    operators: tuple[Operator, ...]
    parameters: int
    parameter_bytes: int
    backends: tuple[BackendView, ...] = ()

    @property
    def macs(self) -> int:
        """The multiply-accumulates of one run."""
        return sum(operator.macs for operator in self.operators)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists."""
        return {
            "inputs": [asdict(value) for value in self.inputs],
            "outputs": [asdict(value) for value in self.outputs],
            "operators": [asdict(operator) for operator in self.operators],
            "parameters": {"count": self.parameters, "bytes": self.parameter_bytes},
            "macs": self.macs,
            "backends": {view.name: view.to_dict() for view in self.backends},
        }

    def text(self, width: int | None = None) -> str:
        """What it is made of, and a line for each backend; of one alone, the whole report.

        Args:
            width: columns of the terminal.
        """
        parts = [self._head(width), self._counts(width)]
        if len(self.backends) == 1:
            parts.append(self.backends[0].report.text(width))
        elif self.backends:
            parts.append(self._views(width))
        return "\n\n".join(parts)

    def _head(self, width: int | None) -> str:
        lines = [("input", str(value)) for value in self.inputs]
        lines += [("output", str(value)) for value in self.outputs]
        lines += [
            ("operators", str(len(self.operators))),
            ("parameters", f"{self.parameters:,} in {self.parameter_bytes / 1e6:.2f} MB"),
            ("multiply-accumulates", f"{self.macs:,}"),
        ]
        return text_table(("what", "of the model"), lines, width=width)

    def _counts(self, width: int | None) -> str:
        number = Counter(operator.operator for operator in self.operators)
        cost: Counter[str] = Counter()
        for operator in self.operators:
            cost[operator.operator] += operator.macs
        rows = [
            (str(count), f"{cost[name] / max(self.macs, 1):.0%}" if cost[name] else "", name)
            for name, count in number.most_common()
        ]
        return text_table(
            ("number", "MACs", "operator"), rows, right=("number", "MACs"), width=width
        )

    def _views(self, width: int | None) -> str:
        rows = []
        for view in self.backends:
            reasons = view.report.reasons().items()
            why = "; ".join(f"{len(alike)} x {reason}" for reason, alike in reasons)
            count = f"{len(view.report.quantized)} of {len(view.report)}"
            rows.append((view.name, count, f"{view.share:.0%}", why))
        headers = ("backend", "quantized", "MACs", "left in float")
        return text_table(headers, rows, right=headers[1:3], width=width)
