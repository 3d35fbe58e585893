"""Calibrate several programs together, improve them and convert them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pt2q.algorithms import Improvement
from pt2q.algorithms.quantize import improve_programs
from pt2q.app.conversion import call_of
from pt2q.app.data.checks import Look
from pt2q.app.programs.data import Calls, Programs, ProgramsData, Together
from pt2q.deploy.signature import signature_of
from pt2q.errors import DataError, NoDataError, Pt2qError
from pt2q.flow import convert_pt2e, prepare_pt2e
from pt2q.ir.module import QuantGraphModule
from pt2q.library_output import first_line
from pt2q.spec import Quantizer

Converted = dict[str, QuantGraphModule]


def check_data(programs: Programs, data: ProgramsData, improvement: Improvement) -> None:
    """Refuse what algorithms cannot do: what they change has to be judged in every program.

    Args:
        programs: the float programs.
        data: of those that have some.
        improvement: how accuracy is won back.

    Raises:
        DataError: a program that algorithms would change has no data.
    """
    without = [name for name in programs if name not in data.names]
    if without and (improvement.algorithms or improvement.effort is not None):
        raise DataError(
            f"algorithms change what programs share, and {', '.join(without)} has no data to judge "
            f"that by: give --calibration {without[0]}=FILE, or no algorithm and no effort"
        )


def calibrated_together(
    programs: Programs, quantizer: Quantizer, data: ProgramsData, improvement: Improvement
) -> dict[str, QuantGraphModule]:
    """Prepare programs, show those that have data theirs, and improve them.

    Args:
        programs: the float programs.
        quantizer: says how.
        data: to calibrate on.
        improvement: how accuracy is won back.

    Raises:
        DataError: a program fails on its data.
    """
    prepared = prepare_pt2e(programs, quantizer)
    shown = {name: prepared[name] for name in data.names}
    calls = {name: call_of(programs[name]) for name in data.names}
    reached = _Reached(len(data.calibration))

    def batch(values: Calls) -> dict[str, object]:
        reached.number += 1
        return {name: calls[name](value) for name, value in values.items()}

    with reached.failing():
        found = improve_programs(shown, Together(data.calibration.parts, batch), improvement)
    return {name: found.get(name, model) for name, model in prepared.items()}


def convert_together(prepared: dict[str, QuantGraphModule], data: ProgramsData) -> Converted:
    """Convert programs that were calibrated together.

    Args:
        prepared: what `calibrated_together` gave.
        data: says which had data.

    Raises:
        DataError: one that had none has ranges that need some.
    """
    try:
        return convert_pt2e(prepared)
    except NoDataError as error:
        without = [name for name in prepared if name not in data.names]
        if not without:
            raise
        raise DataError(
            f"{', '.join(without)} has no calibration data, and ranges of its own: give "
            f"--calibration {without[0]}=FILE, or --dynamic, which needs none: {first_line(error)}"
        ) from error


class _Reached:
    """Which batch a run through the data has come to."""

    def __init__(self, count: int) -> None:
        self.number, self.count = 0, count

    @contextmanager
    def failing(self) -> Iterator[None]:
        """What a program raises on data that it does not take is of one batch."""
        try:
            yield
        except Pt2qError:
            raise
        except (IndexError, ValueError, RuntimeError) as error:
            number = (self.number - 1) % self.count + 1
            raise DataError(
                f"calibration data: a program fails on batch {number}: {first_line(error)}"
            ) from error


def warn_of_data(programs: Programs, data: ProgramsData) -> None:
    """Say what looks wrong with the data of each program; it is gone through once more.

    Args:
        programs: the float programs.
        data: theirs.
    """
    for name, batches in data.calibration.parts.items():
        look = Look()
        for batch in batches:
            look.see(batch)
        look.warn(signature_of(programs[name]), data.held_out.parts[name], of=f" of {name}")
