"""What every job begins with: calibrate on a part of the data, convert, keep the rest."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch.export import ExportedProgram

from pt2q.algorithms import Improvement, improve_and_convert
from pt2q.algorithms.low_memory import calibrate_in_pieces
from pt2q.app.data.checks import Look
from pt2q.app.data.failing import failing
from pt2q.app.data.growth import together, watched
from pt2q.app.data.source import Mapped
from pt2q.deploy.signature import Batch, signature_of
from pt2q.distributed import Ranks, calibrate
from pt2q.flow import DataDigest, convert_pt2e, prepare_pt2e, provenance_of
from pt2q.ir.module import QuantGraphModule
from pt2q.ir.storage import is_low
from pt2q.ir.torch_private import codegen_of
from pt2q.quantizers import Report, TableQuantizer
from pt2q.spec import Quantizer

T = TypeVar("T")


class Track(Protocol):
    """Wraps a loop to show its progress under a title."""

    def __call__(self, items: Sequence[T], title: str, /) -> Iterable[T]:
        """The same items."""
        ...


def untracked(items: Sequence[T], title: str) -> Iterable[T]:
    """Shows nothing.

    Args:
        items: what is gone through.
        title: what would be said.
    """
    return items


def calibrated(
    program: ExportedProgram,
    quantizer: Quantizer,
    calibration: Sequence[Batch],
    track: Track,
    show: Callable[[], None] | None = None,
    resume: Path | None = None,
    look: Look | None = None,
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
        look: is shown the data, too.
    """
    signature, ranks = signature_of(program), Ranks.of()
    prepared = prepare_pt2e(program, quantizer)
    if show is not None:
        show()
    digest = DataDigest()
    if is_low():
        _calibrate_in_pieces(program, prepared, calibration, ranks, look, digest, resume)
        return _knowing(prepared, digest, calibration)
    own = range(ranks.rank, len(calibration), ranks.size)
    seen = Look()
    with watched(prepared) as growth, closing(_ticks(track, own)) as numbers:

        def call(batch: Batch) -> None:
            growth.begin(next(numbers))
            if look is not None:
                seen.see(batch)
            args, kwargs = signature.call(batch)
            with failing("calibration data", growth.last + 1):
                prepared(*args, **kwargs)

        # Each of several processes sees a part of the data alone.
        shown = digest.watching(calibration) if ranks.size == 1 else calibration
        calibrate(prepared, shown, call=call, resume=resume)
    found = ranks.gather((growth, seen))
    if look is not None:
        for _, part in found:
            look.add(part)
    if ranks.rank == 0:
        together([part for part, _ in found]).warn()
    return _knowing(prepared, digest, calibration)


def _knowing(
    prepared: QuantGraphModule, digest: DataDigest, calibration: Sequence[Batch]
) -> QuantGraphModule:
    """A module that says what it was calibrated on, where all of that passed by here."""
    found = digest.result()
    if found.batches == len(calibration):
        prepared.record.put(replace(provenance_of(prepared), data=found))
    return prepared


def _calibrate_in_pieces(
    program: ExportedProgram,
    prepared: QuantGraphModule,
    calibration: Sequence[Batch],
    ranks: Ranks,
    look: Look | None,
    digest: DataDigest,
    resume: Path | None,
) -> None:
    """Layer by layer, all batches through each; whether ranges still grow is not known then.

    All processes read all batches; the first one looks at them as they pass.
    """

    def passing() -> Iterator[Batch]:
        for batch in digest.watching(calibration):
            if look is not None:
                look.see(batch)
            yield batch

    given = passing() if ranks.rank == 0 else calibration
    calibrate_in_pieces(prepared, map(call_of(program), given), ranks, resume=resume)


def _ticks(track: Track, numbers: range) -> Generator[int]:
    yield from track(numbers, "calibrating")


def calibrate_and_convert(
    program: ExportedProgram,
    quantizer: TableQuantizer,
    calibration: Sequence[Batch],
    track: Track,
    show: Callable[[Report], None] | None = None,
    improvement: Improvement | None = None,
    resume: Path | None = None,
    look: Look | None = None,
) -> QuantGraphModule:
    """Quantize an exported program.

    Args:
        program: the float model.
        quantizer: says how.
        calibration: what the observers see.
        track: shows the progress.
        show: is given the quantizer's report before anything can fail that it may explain.
        improvement: how accuracy is won back.
        resume: a folder that keeps how far this came.
        look: is shown the data, too.
    """
    report = None if show is None else lambda: show(quantizer.report())
    prepared = calibrated(program, quantizer, calibration, track, report, resume, look)
    if improvement is None:
        return convert_pt2e(prepared)
    return improve_and_convert(prepared, calls_of(program, calibration), improvement)


def calls_of(program: ExportedProgram, batches: Sequence[Batch]) -> Sequence[Any]:
    """Batches as calls of the model: tuples of arguments, or dicts by their names.

    Args:
        program: the model.
        batches: its tensors; read when the calls are.
    """
    return Mapped(batches, call_of(program))


def call_of(program: ExportedProgram) -> Callable[[Batch], Any]:
    """What makes a call of a model of its tensors: a tuple of arguments, or a dict by their names.

    Args:
        program: the model.
    """
    signature = signature_of(program)
    names = codegen_of(program.module(check_guards=False).graph).pytree_info.orig_args

    def call(batch: Batch) -> Any:
        args, kwargs = signature.call(batch)
        return args if not kwargs else {**dict(zip(names, args, strict=False)), **kwargs}

    return call
