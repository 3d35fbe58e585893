"""`quantize_pt2e`: prepare, calibrate, win accuracy back, convert."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch.export import ExportedProgram
from torch.fx import GraphModule

from pt2q.algorithms.applied import Applied
from pt2q.algorithms.batches import Batches
from pt2q.algorithms.effort import algorithms_for
from pt2q.algorithms.low_memory import calibrate_in_pieces
from pt2q.algorithms.model_error import ModelError, is_less
from pt2q.algorithms.report import Report, decibels
from pt2q.algorithms.task import GraphAlgorithm, Progress
from pt2q.distributed import Ranks, calibrate
from pt2q.errors import SpecError
from pt2q.flow import DataDigest, convert_pt2e, prepare_pt2e, provenance_of
from pt2q.ir.graph import named_tensors
from pt2q.ir.mapped_program import mapped_program
from pt2q.ir.module import QuantGraphModule
from pt2q.ir.storage import is_low
from pt2q.ir.storage import low_memory as low_memory_files
from pt2q.offers import EFFORTS
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


def quantize_pt2e(
    model: ExportedProgram | GraphModule | str | PathLike[str],
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
    group: dist.ProcessGroup | None = None,
    resume: str | PathLike[str] | None = None,
    low_memory: bool | str | PathLike[str] = False,
) -> QuantGraphModule:
    """Quantize an exported model, and win accuracy back.

    Several processes do it together, and all get the model that one would make, to the bit: each
    has to call this with the same model and the same batches in the same order.

    Args:
        model: what ``torch.export.export`` returned, or its ``.module()``. It is not changed. Or a
            file that ``torch.export.save`` wrote and that you trust; with ``low_memory`` its
            weights stay in there.
        quantizer: says what is quantized and how.
        batches: representative inputs: tensors, tuples of arguments or dicts by their names.
            Every fourth judges what is computed from the others; give four or more.
        algorithms: of `pt2q.algorithms`, in the order in which they are applied.
        effort: chooses them by what the quantizer asks for, instead: ``"fast"``, ``"balanced"``
            or ``"best"``; see `algorithms_for`.
        fold_quantize, use_reference_representation: as for `convert_pt2e`.
        seed: of random choices; equal seeds give equal models, bit for bit.
        spill: keep the values of a run in files: True, or the folder in which to make a temporary
            one.
        progress: is told where an algorithm stands.
        group: the processes that do it together; None for all of ``torch.distributed``, or for this
            one where that is not initialised.
        resume: a folder that keeps how far this came: what observers saw, what algorithms found for
            each layer. A run that was stopped goes on from there and ends with the same model.
        low_memory: hold little more than one layer at a time, for a model that does not fit: True,
            or the folder for temporary files. The result is the same; its large tensors are mapped
            from files.

    Returns:
        The converted model; ``report_of(model)`` says what was done to it, layer by layer.

    Raises:
        DataError: there is no batch, or one is not a call of the model.
        SpecError: there is no such effort, or algorithms are given beside it.
        NotExportedError, FlowError, AnnotationError, SharingError, NoDataError: as `prepare_pt2e`
            and `convert_pt2e`.
        MergeError, DistributedError: as `pt2q.distributed.calibrate`.
    """
    check_choice(algorithms, effort)
    chosen = tuple(algorithms)
    with _memory(low_memory):
        spill = spill or is_low()
        improvement = Improvement(chosen, effort, seed, spill, progress, group, resume)
        data = Batches(batches, seed)
        prepared = prepare_pt2e(_loaded(model), quantizer)
        digest = DataDigest()
        _calibrate(prepared, digest.watching(data), improvement)
        prepared.record.put(replace(provenance_of(prepared), data=digest.result()))
        return improve_and_convert(
            prepared,
            data,
            improvement,
            use_reference_representation=use_reference_representation,
            fold_quantize=fold_quantize,
        )


def _memory(wanted: bool | str | PathLike[str]) -> AbstractContextManager[Any]:
    if wanted is False:
        return nullcontext()
    return low_memory_files(None if wanted is True else Path(wanted))


def _loaded(
    model: ExportedProgram | GraphModule | str | PathLike[str],
) -> ExportedProgram | GraphModule:
    if isinstance(model, ExportedProgram | GraphModule):
        return model
    return mapped_program(model) if is_low() else torch.export.load(model)


def _calibrate(
    prepared: QuantGraphModule, batches: Iterable[Any], improvement: Improvement
) -> None:
    group, spill = improvement.group, improvement.spill
    if is_low():
        calibrate_in_pieces(prepared, batches, Ranks.of(group), spill=spill)
    else:
        calibrate(prepared, batches, group=group, resume=improvement.resume)


@dataclass(frozen=True)
class Improvement:
    """How accuracy is won back; see `quantize_pt2e`."""

    algorithms: tuple[Algorithm, ...] = ()
    effort: str | None = None
    seed: int = 0
    spill: bool | str | Path = False
    progress: Progress | None = None
    group: dist.ProcessGroup | None = None
    resume: str | PathLike[str] | None = None


def improve_and_convert(
    prepared: QuantGraphModule,
    batches: Iterable[Any],
    improvement: Improvement,
    **options: Any,
) -> QuantGraphModule:
    """Improve a prepared and calibrated model, and convert it.

    Args:
        prepared: it is not changed.
        batches: see `quantize_pt2e`.
        improvement: how.
        **options: for `convert_pt2e`.

    Raises:
        SpecError, NoDataError: as `quantize_pt2e`.
    """
    improved, applied = apply_improvement(prepared, batches, improvement)
    converted = convert_pt2e(improved, **options)
    if applied is not None:
        converted.record.put(applied)
    return converted


def apply_improvement(
    prepared: QuantGraphModule, batches: Iterable[Any], improvement: Improvement
) -> tuple[QuantGraphModule, Applied | None]:
    """Improve a prepared and calibrated model.

    Args:
        prepared: it is not changed.
        batches: see `quantize_pt2e`.
        improvement: how.

    Returns:
        The improved model, and what was done to it if anything was asked for.

    Raises:
        SpecError, NoDataError: as `quantize_pt2e`.
    """
    effort, seed = improvement.effort, improvement.seed
    check_choice(improvement.algorithms, effort)
    chosen = improvement.algorithms if effort is None else algorithms_for(prepared, effort)
    improved, report = improve(
        prepared,
        batches,
        chosen,
        group=improvement.group,
        resume=improvement.resume,
        seed=seed,
        spill=improvement.spill,
        progress=improvement.progress,
    )
    return improved, Applied.of(chosen, report, seed) if chosen else None


def check_choice(algorithms: Sequence[Algorithm], effort: str | None) -> None:
    """Check what is asked for before any work.

    Raises:
        SpecError: there is no such effort, or algorithms are given as well.
    """
    if effort is None:
        return
    if effort not in EFFORTS:
        raise SpecError(f"effort: expected one of {', '.join(EFFORTS)}, found {effort!r}")
    if algorithms:
        names = ", ".join(algorithm.name for algorithm in algorithms)
        raise SpecError(f"effort={effort!r} chooses the algorithms: give it, or {names}, not both")


def improve(
    model: QuantGraphModule,
    batches: Iterable[Any],
    algorithms: Sequence[Algorithm],
    *,
    group: dist.ProcessGroup | None = None,
    resume: str | PathLike[str] | None = None,
    **options: Any,
) -> tuple[QuantGraphModule, Report]:
    """Apply algorithms one after the other, as far as the whole model gets better.

    Each begins with what the one before it left. Of the states on the way, the one whose outputs
    are nearest to float on the batches to judge by, beyond chance, is given back.

    Args:
        model: prepared and calibrated; it is not changed.
        batches: see `quantize_pt2e`.
        algorithms: in order.
        group: the processes that do it together, see `quantize_pt2e`.
        resume: a folder that keeps what was found, a folder in it for each algorithm.
        **options: for each of them.

    Returns:
        The improved model, and what was done.
    """
    if not algorithms:
        return model, Report()
    judge = ModelError(model, batches, Ranks.of(group))
    states, errors, reports = [model], [judge.of(model)], []
    for place, algorithm in enumerate(algorithms):
        tried = fork(states[-1])
        more: dict[str, Any] = {}
        if isinstance(algorithm, GraphAlgorithm):  # a user's need not take these
            folder = None if resume is None else Path(resume) / f"{place}-{algorithm.name}"
            more = {"group": group, "resume": folder}
        found = algorithm(tried, batches, **options, **more)
        states.append(tried)
        errors.append(judge.of(tried) if any(row.kept for row in found.rows) else errors[-1])
        reports.append(found)
    best = 0
    for state in range(1, len(states)):
        if is_less(errors[best], errors[state]):
            best = state
    kept = reports[:best]
    for report, before, after in list(zip(reports, errors, errors[1:], strict=False))[best:]:
        kept.append(_taken_back(report, math.fsum(before), math.fsum(after)))
    return states[best], sum(kept, Report())


def fork(model: QuantGraphModule) -> QuantGraphModule:
    """A copy with observers of its own that shares the weights, which are replaced, not written."""
    held = {id(t): t for t in named_tensors(model).values() if isinstance(t, torch.nn.Parameter)}
    return copy.deepcopy(model, dict(held))


def _taken_back(report: Report, before: float, after: float) -> Report:
    words = (
        f"taken back: the model's outputs on held-out batches went from "
        f"{decibels(1.0, before):.2f} to {decibels(1.0, after):.2f} dB, no gain beyond chance"
    )
    rows = tuple(replace(row, kept=False, reason=words) if row.kept else row for row in report.rows)
    return replace(report, rows=rows)
