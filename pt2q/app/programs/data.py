"""Data of several programs: a call of each makes a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.export import ExportedProgram

from pt2q.app.data.holding_out import needed_of, parted, remembers
from pt2q.app.data.reading import read_batches
from pt2q.app.data.source import Batches, Lazy
from pt2q.deploy.signature import Batch, signature_of
from pt2q.errors import DataError

Programs = Mapping[str, ExportedProgram]
Calls = dict[str, Batch]
"""A call of each program, by its name."""


@dataclass(frozen=True)
class Together(Lazy[Any]):
    """Batches of several programs.

    Args:
        parts: those of each, as many of one as of another.
        function: makes a batch of a call of each.
    """

    parts: Mapping[str, Sequence[Batch]]
    function: Callable[[Calls], Any] = dict

    def __len__(self) -> int:
        return min(map(len, self.parts.values()))

    def part(self, places: Sequence[int]) -> Together:
        """See `Lazy.part`."""
        parts = {
            name: one.part(places) if isinstance(one, Lazy) else [one[place] for place in places]
            for name, one in self.parts.items()
        }
        return Together(parts, self.function)

    def __iter__(self) -> Iterator[Any]:
        for calls in zip(*self.parts.values(), strict=True):
            yield self.function(dict(zip(self.parts, calls, strict=True)))

    def at_hand(self) -> Together:
        """The same with what is small in memory, see `Batches.at_hand`."""
        parts = {
            name: one.at_hand() if isinstance(one, Batches) else one
            for name, one in self.parts.items()
        }
        return Together(parts, self.function)


@dataclass(frozen=True)
class ProgramsData:
    """Data of several programs in its two parts; see `Data`.

    Args:
        calibration, held_out: of the programs that have data.
        how: where what is held out comes from, in words.
    """

    calibration: Together
    held_out: Together
    how: str

    @property
    def names(self) -> tuple[str, ...]:
        """The programs that have data, in their order."""
        return tuple(self.calibration.parts)


def read_together(
    programs: Programs,
    calibration: Mapping[str, Path],
    held_out: Mapping[str, Path],
    limit: int | None,
    seed: int,
) -> ProgramsData:
    """Open the data of several programs, and hold the same calls of all of them out.

    Args:
        programs: the float programs, in the order in which a batch calls them.
        calibration: the data of each program that has some.
        held_out: what is held out instead of a tenth of that; of all of these, or of none.
        limit, seed: as for `read_data`.

    Raises:
        DataError: it cannot be read, does not fit, or is of different lengths.
    """
    named = {name: programs[name] for name in programs if name in calibration}
    if held_out:
        if set(held_out) != set(named):
            raise DataError(
                f"--held-out is given for {', '.join(held_out)}, --calibration for "
                f"{', '.join(named)}: give it for the same programs"
            )
        kept = Together(_opened(named, held_out, None))
        return ProgramsData(
            Together(_opened(named, calibration, limit)), kept, "of files of their own"
        )
    in_a_row = any(map(remembers, named.values()))
    batches = _opened(named, calibration, needed_of(limit))
    data = {name: parted(one, limit, seed, in_a_row=in_a_row) for name, one in batches.items()}
    return ProgramsData(
        Together({name: one.calibration for name, one in data.items()}),
        Together({name: one.held_out for name, one in data.items()}),
        next(iter(data.values())).how,
    )


def _opened(programs: Programs, paths: Mapping[str, Path], limit: int | None) -> dict[str, Batches]:
    found = {
        name: read_batches(paths[name], signature_of(program), limit)
        for name, program in programs.items()
    }
    counts = {name: len(batches) for name, batches in found.items()}
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{count} of {name}" for name, count in counts.items())
        raise DataError(
            f"calibration data: a batch is a call of each program, and there are {said} call(s): "
            "give as many of each, or take the first of them with --limit"
        )
    return found
