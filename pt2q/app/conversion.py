"""What every job begins with: calibrate on a part of the data, convert, keep the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.export import ExportedProgram

from pt2q.algorithms import Improvement, improve_and_convert
from pt2q.app.data_checks import watched
from pt2q.deploy.signature import Batch, signature_of
from pt2q.distributed import calibrate
from pt2q.errors import DataError, Pt2qError
from pt2q.flow import convert_pt2e, prepare_pt2e
from pt2q.ir.module import QuantGraphModule
from pt2q.ir.torch_private import codegen_of
from pt2q.library_output import first_line
from pt2q.quantizers import Report, TableQuantizer
from pt2q.spec import Quantizer

Track = Callable[[Sequence[Batch], str], Iterable[Batch]]
"""Wraps a loop over batches to show its progress under a title."""


def calibrated(
    program: ExportedProgram,
    quantizer: Quantizer,
    calibration: Sequence[Batch],
    track: Track,
    show: Callable[[], None] | None = None,
    resume: Path | None = None,
) -> QuantGraphModule:
    """Prepare an exported program and show its observers the data.

    Where ``torchrun`` started several processes, each of them has to call this: they share the
    batches out, and all come to what one process comes to.

    Args:
        program: the float model.
        quantizer: says how.
        calibration: what the observers see.
        track: shows the progress.
        show: is called before anything can fail that the quantizer's report may explain.
        resume: a folder that keeps how far this came.
    """
    signature = signature_of(program)
    prepared = prepare_pt2e(program, quantizer)
    if show is not None:
        show()

    with watched(prepared) as growth:

        def call(batch: Batch) -> None:
            growth.begin()
            args, kwargs = signature.call(batch)
            with _named(growth.batches):
                prepared(*args, **kwargs)

        calibrate(prepared, track(calibration, "calibrating"), call=call, resume=resume)
    growth.warn()
    return prepared


@contextmanager
def _named(number: int) -> Iterator[None]:
    """What a model raises on data that it does not take, such as a token that it has not."""
    try:
        yield
    except Pt2qError:
        raise
    except (IndexError, ValueError, RuntimeError) as error:
        raise DataError(
            f"calibration data: the model fails on batch {number}: {first_line(error)}"
        ) from error


def calibrate_and_convert(
    program: ExportedProgram,
    quantizer: TableQuantizer,
    calibration: Sequence[Batch],
    track: Track,
    show: Callable[[Report], None] | None = None,
    improvement: Improvement | None = None,
    resume: Path | None = None,
) -> QuantGraphModule:
    """Quantize an exported program.

    Args:
        program: the float model.
        quantizer: says how.
        calibration: what the observers see.
        track: shows the progress.
        show: is given the quantizer's report before anything can fail that it may explain.
        improvement: how accuracy is won back.
        resume: a folder that keeps how far calibration came.
    """
    report = None if show is None else lambda: show(quantizer.report())
    prepared = calibrated(program, quantizer, calibration, track, report, resume)
    if improvement is None:
        return convert_pt2e(prepared)
    return improve_and_convert(prepared, calls_of(program, calibration), improvement)


def calls_of(program: ExportedProgram, batches: Sequence[Batch]) -> list[Any]:
    """Batches as calls of the model: tuples of arguments, or dicts by their names.

    Args:
        program: the model.
        batches: its tensors.
    """
    signature = signature_of(program)
    names = codegen_of(program.module(check_guards=False).graph).pytree_info.orig_args
    pairs = [signature.call(batch) for batch in batches]
    return [
        args if not kwargs else {**dict(zip(names, args, strict=False)), **kwargs}
        for args, kwargs in pairs
    ]


def split_off(
    batches: Sequence[Batch], limit: int | None = None
) -> tuple[Sequence[Batch], Sequence[Batch]]:
    """Keep the last tenth, at least one batch and at most 100, for the comparison.

    Args:
        batches: all there is.
        limit: calibrate on at most so many; None: all.


    Raises:
        DataError: there are fewer than two batches.
    """
    if len(batches) < 2:
        raise DataError(
            "calibration data: at least two batches are needed, "
            "one to calibrate on and one held out to compare with float; got one"
        )
    held_out = min(max(len(batches) // 10, 1), 100)
    return batches[:-held_out][:limit], batches[-held_out:]
