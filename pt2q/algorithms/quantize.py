"""`quantize_pt2e`: prepare, calibrate, win accuracy back, convert."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, overload

import torch
import torch.distributed as dist
from torch.export import ExportedProgram
from torch.fx import GraphModule

from pt2q.algorithms.applied import Applied
from pt2q.algorithms.batches import Batches
from pt2q.algorithms.improving import Algorithm, Improvement, apply_improvement, check_choice
from pt2q.algorithms.low_memory import calibrate_in_pieces
from pt2q.algorithms.task import Progress
from pt2q.distributed import Ranks, calibrate
from pt2q.flow import DataDigest, convert_pt2e, prepare_pt2e, provenance_of
from pt2q.ir.joined import JoinedPrograms, join_programs
from pt2q.ir.mapped_program import mapped_program
from pt2q.ir.module import QuantGraphModule
from pt2q.ir.storage import is_low
from pt2q.ir.storage import low_memory as low_memory_files
from pt2q.spec.quantizer import Quantizer

Saved = ExportedProgram | GraphModule | str | PathLike[str]
"""A program, or the file that ``torch.export.save`` wrote it to."""


@overload
def quantize_pt2e(
    model: Saved,
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
) -> QuantGraphModule: ...


@overload
def quantize_pt2e(
    model: Mapping[str, Saved],
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
) -> dict[str, QuantGraphModule]: ...


def quantize_pt2e(
    model: Saved | Mapping[str, Saved],
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
) -> QuantGraphModule | dict[str, QuantGraphModule]:
    """Quantize an exported model, and win accuracy back.

    Several processes do it together, and all get the model that one would make, to the bit: each
    has to call this with the same model and the same batches in the same order.

    Args:
        model: what ``torch.export.export`` returned, or its ``.module()``. It is not changed. Or a
            file that ``torch.export.save`` wrote and that you trust; with ``low_memory`` its
            weights stay in there. Several programs of one model by name, such as prefill and
            decode, are quantized together, see `prepare_pt2e`.
        quantizer: says what is quantized and how.
        batches: representative inputs: tensors, tuples of arguments or dicts by their names; of
            several programs, dicts by name with such a call of each, made in the order of the
            programs. Every fourth judges what is computed from the others; give four or more.
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
        The converted model, or those of several programs by name; ``report_of(model)`` says what
        was done to it, layer by layer.

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
        if isinstance(model, Mapping):
            loaded = {name: _loaded(one) for name, one in model.items()}
            programs = improve_programs(prepare_pt2e(loaded, quantizer), data, improvement)
            return convert_pt2e(programs, use_reference_representation, fold_quantize)
        one = _improved(prepare_pt2e(_loaded(model), quantizer), data, improvement)
        return convert_pt2e(one, use_reference_representation, fold_quantize)


def improve_programs(
    prepared: Mapping[str, QuantGraphModule], data: Iterable[Any], improvement: Improvement
) -> dict[str, QuantGraphModule]:
    """Calibrate and improve several programs of one model together.

    Args:
        prepared: what `prepare_pt2e` made of them; their observers are shown the data.
        data: dicts by name with a call of each.
        improvement: how.

    Returns:
        The programs by name, for `convert_pt2e`; each says what was done to all.

    Raises:
        DataError, MergeError, DistributedError: as `quantize_pt2e`.
    """
    joined = join_programs(prepared)
    return _apart(joined, _improved(joined.module, joined.calls(data), improvement))


def _improved(
    prepared: QuantGraphModule, data: Iterable[Any], improvement: Improvement
) -> QuantGraphModule:
    """A prepared module, calibrated and improved, that says what was done to it."""
    digest = DataDigest()
    _calibrate(prepared, digest.watching(data), improvement)
    prepared.record.put(replace(provenance_of(prepared), data=digest.result()))
    improved, applied = apply_improvement(prepared, data, improvement)
    if applied is not None:
        improved.record.put(applied)
    return improved


def _apart(joined: JoinedPrograms, improved: QuantGraphModule) -> dict[str, QuantGraphModule]:
    """Programs again, each of which says what was done to all."""
    programs = joined.apart(improved)
    data, applied = provenance_of(improved).data, improved.record.get(Applied)
    for program in programs.values():
        program.record.put(replace(provenance_of(program), data=data))
        if applied is not None:
            program.record.put(applied)
    return programs


def _memory(wanted: bool | str | PathLike[str]) -> AbstractContextManager[Any]:
    if wanted is False:
        return nullcontext()
    return low_memory_files(None if wanted is True else Path(wanted))


def _loaded(model: Saved) -> ExportedProgram | GraphModule:
    if isinstance(model, ExportedProgram | GraphModule):
        return model
    return mapped_program(model) if is_low() else torch.export.load(model)


def _calibrate(
    prepared: QuantGraphModule, batches: Iterable[Any], improvement: Improvement
) -> None:
    group, spill = improvement.group, improvement.spill
    if is_low():
        resume = improvement.resume
        calibrate_in_pieces(prepared, batches, Ranks.of(group), spill=spill, resume=resume)
    else:
        calibrate(prepared, batches, group=group, resume=improvement.resume)
