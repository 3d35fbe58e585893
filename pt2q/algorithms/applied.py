"""What a converted model carries of what was done to it: in its record, and in deployed files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, is_dataclass
from importlib.metadata import version
from typing import Any, Protocol

import torch

from pt2q.algorithms.report import Report
from pt2q.ir.module import QuantGraphModule


class Named(Protocol):
    """An algorithm, as far as a record goes."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...


@dataclass(frozen=True)
class Applied:
    """What was done to a converted model; in its record.

    Attributes:
        algorithms: names with their settings, in order.
        report: layer by layer.
        seed: of random choices.
        versions: of pt2q and torch.
    """

    algorithms: tuple[tuple[str, dict[str, Any]], ...]
    report: Report
    seed: int
    versions: dict[str, str]

    @classmethod
    def of(cls, algorithms: Sequence[Named], report: Report, seed: int) -> Applied:
        """What some algorithms did.

        Args:
            algorithms: in order.
            report: what they said.
            seed: what they were given.
        """
        settings = tuple((a.name, _settings(a)) for a in algorithms)
        versions = {"pt2q": version("pt2q"), "torch": torch.__version__}
        return cls(settings, report, seed, versions)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, the same in every run: names, settings, versions, the layers changed."""
        changed: dict[str, list[str]] = {name: [] for name, _ in self.algorithms}
        for row in self.report.rows:
            if row.kept:
                changed.setdefault(row.algorithm, []).append(row.layer)
        algorithms = [{"name": name, "settings": found} for name, found in self.algorithms]
        return {
            "algorithms": algorithms,
            "changed": changed,
            "seed": self.seed,
            "versions": self.versions,
        }


def _settings(algorithm: Any) -> dict[str, Any]:
    return asdict(algorithm) if is_dataclass(algorithm) and not isinstance(algorithm, type) else {}


def report_of(model: QuantGraphModule) -> Report:
    """What algorithms did to a converted model, layer by layer; empty if none was applied."""
    found = model.record.get(Applied)
    return Report() if found is None else found.report
