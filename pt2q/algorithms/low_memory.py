"""Calibration of a model that does not fit into memory: piece by piece, as the engine runs it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from os import PathLike
from typing import Any

from torch import Tensor

from pt2q.algorithms.engine import Lane, Walk
from pt2q.algorithms.kept_pieces import Pieces
from pt2q.distributed import Ranks, together
from pt2q.distributed.calibrating import at_batch, observers_of, refusal, settle
from pt2q.distributed.checkpoint import can_tell
from pt2q.distributed.model_digest import digest_of
from pt2q.errors import DataError, Pt2qError, SpecError
from pt2q.flow import DataDigest
from pt2q.ir.module import QuantGraphModule
from pt2q.library_output import first_line
from pt2q.observers.protocol import rounds


def calibrate_in_pieces(
    prepared: QuantGraphModule,
    batches: Iterable[Any],
    ranks: Ranks,
    *,
    spill: Any = True,
    resume: str | PathLike[str] | None = None,
) -> None:
    """Show batches to the observers of a prepared module, one piece of it after the other.

    What observers find is what `pt2q.distributed.calibrate` finds, to the bit: each is told which
    batch it sees.

    Args:
        prepared: what `prepare_pt2e` returned, not calibrated yet; changed in place.
        batches: all of them; those of other processes are left out.
        ranks: the processes.
        spill: where values between pieces are kept, see `Walk`.
        resume: a folder that keeps what was seen and these values after each piece; a run that was
            stopped goes on from there and ends with the same statistics.

    Raises:
        SpecError: an observer rounds while it watches.
        FlowError, MergeError, DataError, DistributedError: as `calibrate`.
    """
    observers = observers_of(prepared)
    ranks.agree(refusal(prepared, observers, ranks, resume) or _rounding(observers))
    pieces = None if resume is None else Pieces.of(resume, ranks, observers)
    store = None if pieces is None else pieces.store
    model = "" if pieces is None else digest_of(prepared)
    digest = DataDigest()
    given = batches if pieces is None else digest.watching(batches)
    try:
        lane = _Watching()
        with (
            Walk(prepared, given, [lane], spill=spill, ranks=ranks, store=store) as walk,
            _named(lane),
        ):
            if pieces is None:
                walk.finish()
            else:
                run = f"{digest.result().sha256} {model}"
                together(ranks, partial(pieces.restore, walk, run))
                walk.finish(stopped=partial(pieces.save, walk, run))
        settle(observers, ranks)
    finally:
        at_batch(observers, None)


@contextmanager
def _named(lane: Lane) -> Iterator[None]:
    """What a model raises on data that it does not take is of one batch."""
    try:
        yield
    except Pt2qError:
        raise
    except (IndexError, ValueError, RuntimeError) as error:
        number = 0 if lane.batch is None else lane.batch + 1
        raise DataError(f"the model fails on batch {number}: {first_line(error)}") from error


def _rounding(observers: dict[str, Any]) -> Exception | None:
    for name, observer in observers.items():
        if rounds(observer):
            return SpecError(
                f"low_memory: '{name}' is a {type(observer).__name__}, which rounds while it "
                "watches; use observers for post-training quantization"
            )
    return None


class _Watching(Lane):
    """Nothing rounds, and all observers see what passes, and which batch it is of."""

    def __init__(self) -> None:
        super().__init__("float", watches=lambda observer: True)

    def observed(self, observer: Any, value: Tensor, *, constant: bool = False) -> Tensor:
        """See `Lane.observed`."""
        if can_tell(observer):
            observer.at_batch(self.batch)
        return super().observed(observer, value, constant=constant)
