"""What a converted model carries of what was done to it: in its record, and in deployed files."""

from __future__ import annotations

import json
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

    def text(self) -> str:
        """As JSON, the same in every run: names, settings, versions, the layers changed."""
        changed: dict[str, list[str]] = {name: [] for name, _ in self.algorithms}
        for row in self.report.rows:
            if row.kept:
                changed.setdefault(row.algorithm, []).append(row.layer)
        algorithms = [{"name": name, "settings": found} for name, found in self.algorithms]
        content = {
            "algorithms": algorithms,
            "changed": changed,
            "seed": self.seed,
            "versions": self.versions,
        }
        return json.dumps(content, sort_keys=True)


def _settings(algorithm: Any) -> dict[str, Any]:
    return asdict(algorithm) if is_dataclass(algorithm) and not isinstance(algorithm, type) else {}


def report_of(model: QuantGraphModule) -> Report:
    """What algorithms did to a converted model, layer by layer; empty if none was applied."""
    found = model.record.get(Applied)
    return Report() if found is None else found.report


def applied_text(model: object) -> str | None:
    """What deployed files carry of what was done to a model, see `Applied.text`; None if nothing.

    Args:
        model: any; one that is exported already carries nothing.
    """
    found = model.record.get(Applied) if isinstance(model, QuantGraphModule) else None
    return None if found is None else found.text()
