"""`quantize_pt2e`: prepare, calibrate, win accuracy back, convert."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule

from pt2q.algorithms.batches import Batches
from pt2q.algorithms.effort import algorithms_for
from pt2q.algorithms.engine.inputs import as_call
from pt2q.algorithms.layerwise import Progress
from pt2q.algorithms.model_error import ModelError
from pt2q.algorithms.report import Report, decibels
from pt2q.flow import convert_pt2e, prepare_pt2e
from pt2q.ir.graph import named_tensors
from pt2q.ir.module import QuantGraphModule
from pt2q.spec.quantizer import Quantizer


class Algorithm(Protocol):
    """What wins accuracy back in a prepared and calibrated model."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    def __call__(
        self,
        model: QuantGraphModule,
        batches: Iterable[Any],
        *,
        seed: int = 0,
        spill: bool | str | Path = False,
        progress: Progress | None = None,
    ) -> Report:
        """Change the model in place and say what was done."""
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


def quantize_pt2e(
    model: ExportedProgram | GraphModule,
    quantizer: Quantizer,
    batches: Iterable[Any],
    *,
    algorithms: Sequence[Algorithm] = (),
    effort: str | None = None,
    fold_quantize: bool = True,
    use_reference_representation: bool = False,
    seed: int = 0,
    spill: bool | str | Path = False,
    progress: Progress | None = None,
) -> QuantGraphModule:
    """Quantize an exported model, and win accuracy back.

    Args:
        model: what ``torch.export.export`` returned, or its ``.module()``. It is not changed.
        quantizer: says what is quantized and how.
        batches: representative inputs: tensors, tuples of arguments or dicts by their names.
            Every fourth judges what is computed from the others; give four or more.
        algorithms: of `pt2q.algorithms`, in the order in which they are applied.
        effort: chooses them by what the quantizer asks for, instead: ``"fast"``, ``"balanced"``
            or ``"best"``.
        fold_quantize, use_reference_representation: as for `convert_pt2e`.
        seed: of random choices; equal seeds give equal models, bit for bit.
        spill: keep the values of a run in files: True, or the folder in which to make a temporary
            one.
        progress: is told where an algorithm stands.

    Returns:
        The converted model; ``report_of(model)`` says what was done to it, layer by layer.

    Raises:
        DataError: there is no batch, or one is not a call of the model.
        NotExportedError, FlowError, AnnotationError, SharingError, NoDataError: as `prepare_pt2e`
            and `convert_pt2e`.
    """
    data = Batches(batches, seed)
    prepared = prepare_pt2e(model, quantizer)
    with torch.no_grad():
        for batch in data:
            args, kwargs = as_call(prepared, batch)
            prepared(*args, **kwargs)
    chosen = tuple(algorithms) if effort is None else algorithms_for(prepared, effort)
    options = {"seed": seed, "spill": spill, "progress": progress}
    prepared, report = improve(prepared, data, chosen, **options)
    converted = convert_pt2e(prepared, use_reference_representation, fold_quantize)
    if chosen:
        converted.record.put(applied(chosen, report, seed))
    return converted


def improve(
    model: QuantGraphModule, batches: Iterable[Any], algorithms: Sequence[Algorithm], **options: Any
) -> tuple[QuantGraphModule, Report]:
    """Apply algorithms one after the other, as far as the whole model gets better.

    Each begins with what the one before it left. Of the states on the way, the one whose outputs
    are nearest to float on the batches to judge by is given back.

    Args:
        model: prepared and calibrated; it is not changed.
        batches: see `quantize_pt2e`.
        algorithms: in order.
        **options: for each of them.

    Returns:
        The improved model, and what was done.
    """
    if not algorithms:
        return model, Report()
    judge = ModelError(model, batches)
    states, errors, reports = [model], [judge.of(model)], []
    for algorithm in algorithms:
        tried = fork(states[-1])
        found = algorithm(tried, batches, **options)
        states.append(tried)
        errors.append(judge.of(tried) if any(row.kept for row in found.rows) else errors[-1])
        reports.append(found)
    best = min(range(len(states)), key=lambda i: (errors[i], -i))
    kept = reports[:best]
    for report, before, after in list(zip(reports, errors, errors[1:], strict=False))[best:]:
        kept.append(_taken_back(report, before, after))
    return states[best], sum(kept, Report())


def fork(model: QuantGraphModule) -> QuantGraphModule:
    """A copy with observers of its own that shares the weights, which are replaced, not written."""
    held = {id(t): t for t in named_tensors(model).values() if isinstance(t, torch.nn.Parameter)}
    return copy.deepcopy(model, dict(held))


def _taken_back(report: Report, before: float, after: float) -> Report:
    words = (
        f"taken back: the model's outputs on held-out batches went from "
        f"{decibels(1.0, before):.2f} to {decibels(1.0, after):.2f} dB"
    )
    rows = tuple(replace(row, kept=False, reason=words) if row.kept else row for row in report.rows)
    return replace(report, rows=rows)


def applied(algorithms: Sequence[Algorithm], report: Report, seed: int) -> Applied:
    """What was done, for the record.

    Args:
        algorithms: in order.
        report: what they said.
        seed: what they were given.
    """
    settings = tuple((a.name, _settings(a)) for a in algorithms)
    versions = {"pt2q": version("pt2q"), "torch": torch.__version__}
    return Applied(settings, report, seed, versions)


def _settings(algorithm: Any) -> dict[str, Any]:
    return asdict(algorithm) if is_dataclass(algorithm) and not isinstance(algorithm, type) else {}


def report_of(model: QuantGraphModule) -> Report:
    """What algorithms did to a converted model, layer by layer; empty if none was applied."""
    found = model.record.get(Applied)
    return Report() if found is None else found.report
