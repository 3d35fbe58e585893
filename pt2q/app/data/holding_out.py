"""What of the data is calibrated on, and what is kept to compare with float."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from torch.export import ExportedProgram

from pt2q.app.data.reading import read_batches
from pt2q.app.data.source import Batches
from pt2q.deploy.signature import signature_of
from pt2q.errors import DataError
from pt2q.ir.storage import written_constants

SHARE = 10
"""One batch in so many is held out."""
MOST = 100
"""No more than so many are."""


@dataclass(frozen=True)
class Data:
    """Calibration data in its two parts.

    Args:
        calibration: calls to calibrate on.
        held_out: calls to compare on.
        how: where these come from, in words.
    """

    calibration: Batches
    held_out: Batches
    how: str

    def to_measure(self, count: int) -> Batches:
        """So many batches: those that are held out, and where they are too few the last others.

        Args:
            count: how many.
        """
        more = count - len(self.held_out)
        if more <= 0 or self.calibration.source is not self.held_out.source:
            return self.held_out.part(range(min(count, len(self.held_out))))
        numbers = sorted({*self.held_out.numbers, *self.calibration.numbers[-more:]})
        return Batches(self.held_out.source, numbers)


def read_data(
    program: ExportedProgram,
    calibration: Path,
    held_out: Path | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Data:
    """Open calibration data, and choose what is held out of it.

    Args:
        program: the float model. One that keeps state from call to call is compared on calls that
            follow each other: the last ones.
        calibration: the data; see `read_batches`.
        held_out: what is held out instead of a tenth of that.
        limit: calibrate on at most so many; what is not needed is not read.
        seed: of the choice.

    Raises:
        DataError: it cannot be read, does not fit, or is too little.
    """
    signature = signature_of(program)
    if held_out is not None:
        kept = read_batches(held_out, signature)
        return Data(read_batches(calibration, signature, limit), kept, f"of {held_out.name}")
    batches = read_batches(calibration, signature, needed_of(limit))
    return parted(batches, limit, seed, in_a_row=remembers(program))


def remembers(program: ExportedProgram) -> bool:
    """Whether a program writes into its buffers, so that a call depends on those before it.

    Args:
        program: decomposed, or as ``torch.export.export`` gives it, whose signature does not say.
    """
    graph = program.module(check_guards=False).graph
    return bool(written_constants(graph))


def parted(batches: Batches, limit: int | None, seed: int, in_a_row: bool) -> Data:
    """Hold out a tenth, at least one batch and at most 100.

    Args:
        batches: all there is, or the first of it as far as it is needed.
        limit: calibrate on at most so many.
        seed: of the choice: of each of as many parts of the data as are held out, one batch is
            drawn, so that sorted data is held out of everywhere.
        in_a_row: hold out the last ones instead.

    Raises:
        DataError: there are fewer than two batches.
    """
    if len(batches) < 2:
        raise DataError(
            "calibration data: at least two batches are needed, one to calibrate on and one held "
            "out to compare with float; got one. --held-out takes the other from another file"
        )
    count = _held(len(batches)) if limit is None else min(_held(limit), _held(len(batches)))
    if in_a_row:
        kept = list(range(len(batches) - count, len(batches)))
        how = "the last ones, as the model remembers"
    else:
        kept = [_drawn(len(batches), part, count, seed) for part in range(count)]
        how = f"drawn by seed {seed}"
    rest = sorted({*range(len(batches))} - {*kept})[:limit]
    return Data(batches.part(rest), batches.part(kept), how)


def needed_of(limit: int | None) -> int | None:
    """How many batches are read to calibrate on so many, and hold some out beside them.

    Args:
        limit: the most to calibrate on; None: all.
    """
    return None if limit is None else limit + _held(limit)


def _held(count: int) -> int:
    """How many of so many batches are held out."""
    return min(max(count // SHARE, 1), MOST)


def _drawn(batches: int, part: int, parts: int, seed: int) -> int:
    """One batch of a part of the data, the same on every machine."""
    start, end = batches * part // parts, batches * (part + 1) // parts
    digest = hashlib.blake2b(f"{seed} {part}".encode(), digest_size=8).digest()
    return start + int.from_bytes(digest, "big") % (end - start)
