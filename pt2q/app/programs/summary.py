"""What `pt2q quantize` says of several programs in one file: a table, and JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pt2q.app.figures import Figures
from pt2q.app.programs.job import ProgramsOutcome
from pt2q.app.summary import Lines, changed_layers, decibels_text, sizes_text
from pt2q.debug.error import finite
from pt2q.deploy.backend import Backend


@dataclass(frozen=True)
class ProgramsSummary(Lines):
    """What came out.

    Args:
        title: of the table.
        outcome: what was done.
        backend: for what.
    """

    title: str
    outcome: ProgramsOutcome
    backend: Backend

    @property
    def lines(self) -> tuple[tuple[str, str], ...]:
        """Names and values; of each method where it has a value of its own."""
        outcome = self.outcome
        quantized = {
            name: f"{len(report.quantized)} of {len(report)} operators"
            for name, report in outcome.reports.items()
        }
        return (
            ("methods", ", ".join(outcome.reports)),
            ("quantized", _each(quantized)),
            ("calibrated on", _counts(outcome)),
            ("file size", sizes_text(outcome.float_size, outcome.deployed.size, self.backend)),
            ("it holds", str(outcome.holdings)),
            *changed_layers(outcome.improved),
            ("SQNR against float", _each(_decibels(outcome.figures, self.backend))),
            *outcome.deployed.rows,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists; what is infinite or not a number is None."""
        outcome = self.outcome
        return {
            "backend": self.backend.name,
            "methods": {name: self._method(name) for name in outcome.reports},
            "calibrated": len(outcome.data.calibration),
            "held_out": len(outcome.data.held_out),
            "held_out_how": outcome.data.how,
            "bytes": {"float": outcome.float_size, "quantized": outcome.deployed.size},
            "holds": {**dict(outcome.holdings.weights), "program": outcome.holdings.rest},
            "runtime": self.backend.runtime,
            "algorithms": outcome.improved.to_dict(),
            "runs": dict(outcome.deployed.rows),
            "warnings": list(outcome.deployed.warnings),
        }

    def _method(self, name: str) -> dict[str, Any]:
        figures = self.outcome.figures.get(name)
        said = {} if figures is None else asdict(figures)
        return {
            "operators": [row.to_dict() for row in self.outcome.reports[name].rows],
            "sqnr": {key: finite(value) for key, value in said.items()},
        }


def _each(texts: dict[str, str]) -> str:
    return "\n".join(f"{name}: {text}" for name, text in texts.items())


def _decibels(figures: dict[str, Figures], backend: Backend) -> dict[str, str]:
    return {name: decibels_text(found.file, backend.runtime) for name, found in figures.items()}


def _counts(outcome: ProgramsOutcome) -> str:
    data = outcome.data
    count, held = len(data.calibration), len(data.held_out)
    without = [name for name in outcome.reports if name not in data.names]
    more = f"; no data for {', '.join(without)}" if without else ""
    return f"{count} call(s) of {', '.join(data.names)}, {held} more held out, {data.how}{more}"
