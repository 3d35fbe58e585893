"""What `pt2q quantize` says of what it did: a table, and JSON."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from pt2q.account import Account
from pt2q.algorithms import Report as Improved
from pt2q.app.data.holding_out import Data
from pt2q.app.quantize_job import Outcome
from pt2q.debug.error import finite
from pt2q.deploy.backend import Backend


class Lines(Account):
    """An account in names and values."""

    title: str

    @property
    @abstractmethod
    def lines(self) -> tuple[tuple[str, str], ...]:
        """Names and values."""

    def table(self) -> Table:
        """For a terminal."""
        found = Table(title=self.title, show_header=False, title_justify="left")
        for name, value in self.lines:
            found.add_row(name, value)
        return found

    def text(self, width: int | None = None) -> str:
        """A line for each name and value.

        Args:
            width: columns of the terminal; lines are not broken.
        """
        return "\n".join(f"{name}: {value}" for name, value in self.lines)


@dataclass(frozen=True)
class Summary(Lines):
    """What came out.

    Args:
        title: of the table.
        outcome: what was done.
        backend: for what.
    """

    title: str
    outcome: Outcome
    backend: Backend

    @property
    def lines(self) -> tuple[tuple[str, str], ...]:
        """Names and values."""
        outcome, rows = self.outcome, self.outcome.report.rows
        metric = [] if outcome.metric is None else [("metric", str(outcome.metric))]
        return (
            ("quantized", f"{sum(row.quantized for row in rows)} of {len(rows)} operators"),
            ("calibrated on", _counts(outcome.data)),
            ("file size", sizes_text(outcome.float_size, outcome.deployed.size, self.backend)),
            ("it holds", str(outcome.holdings)),
            *changed_layers(outcome.improved),
            (
                "SQNR against float",
                decibels_text(outcome.figures.file, _runtime(outcome, self.backend)),
            ),
            *metric,
            *outcome.deployed.rows,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists; what is infinite or not a number is None."""
        outcome, figures = self.outcome, self.outcome.figures
        return {
            "backend": self.backend.name,
            "operators": [row.to_dict() for row in outcome.report.rows],
            "calibrated": len(outcome.data.calibration),
            "held_out": len(outcome.data.held_out),
            "held_out_how": outcome.data.how,
            "bytes": {"float": outcome.float_size, "quantized": outcome.deployed.size},
            "holds": {**dict(outcome.holdings.weights), "program": outcome.holdings.rest},
            "sqnr": {name: finite(value) for name, value in asdict(figures).items()},
            "runtime": outcome.deployed.runtime or self.backend.runtime,
            "metric": outcome.metric and outcome.metric.to_dict(),
            "algorithms": outcome.improved.to_dict(),
            "runs": dict(outcome.deployed.rows),
            "warnings": list(outcome.deployed.warnings),
        }


def _counts(data: Data) -> str:
    calibrated, held_out = len(data.calibration), len(data.held_out)
    return f"{calibrated} batch(es), {held_out} more held out, {data.how}"


def changed_layers(improved: Improved) -> list[tuple[str, str]]:
    """What algorithms changed, as a line of a summary; none where they changed nothing.

    Args:
        improved: what they say.
    """
    names = dict.fromkeys(row.algorithm for row in improved.rows)
    changed = {name: sum(r.kept for r in improved.rows if r.algorithm == name) for name in names}
    text = ", ".join(f"{name} {count}" for name, count in changed.items())
    return [("layers changed by", text)] if text else []


def sizes_text(float_size: int, size: int, backend: Backend) -> str:
    """The size of a file beside that of the float tensors.

    Args:
        float_size, size: in bytes.
        backend: what reads the file.
    """
    written = f"{_megabytes(size)}{', with code' * backend.holds_code}"
    ratio = float_size / size
    smaller = f", {ratio:.2f}x smaller" if ratio > 1 else ""
    return f"{written}{smaller}; float tensors {_megabytes(float_size)}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB" if size >= 1e5 else f"{size / 1e6:.4f} MB"


def _runtime(outcome: Outcome, backend: Backend) -> str:
    return outcome.deployed.runtime or backend.runtime


def decibels_text(value: float, runtime: str) -> str:
    """What was measured on held-out data.

    Args:
        value: in decibels; NaN where there was nothing to compare.
        runtime: where it was measured.
    """
    if math.isnan(value):
        return "no floating-point output"
    where = f"held-out data, in {runtime}"
    return f"equal, {where}" if math.isinf(value) else f"{value:.1f} dB, {where}"
