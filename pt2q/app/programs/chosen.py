"""What the options of `pt2q quantize` ask for where several programs are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch.export import ExportedProgram

from pt2q.app.chosen import chosen_recipe
from pt2q.app.function_file import file_of
from pt2q.app.options import Asked
from pt2q.app.program_file import read_program
from pt2q.app.programs.data import Programs, ProgramsData, read_together
from pt2q.app.programs.naming import by_name, files_of
from pt2q.app.recipe import Recipe
from pt2q.errors import DataError
from pt2q.files import check_outputs


@dataclass(frozen=True)
class Chosen:
    """Several programs, their data, and what is to be done.

    Args:
        recipe: for which backend, and how.
        models, calibration, held_out: files by the names of programs.
    """

    recipe: Recipe
    models: Mapping[str, Path]
    calibration: Mapping[str, Path]
    held_out: Mapping[str, Path]

    def programs(self) -> dict[str, ExportedProgram]:
        """The float programs, loaded."""
        return {name: read_program(path) for name, path in self.models.items()}

    def data(self, programs: Programs) -> ProgramsData:
        """What they are calibrated and compared on.

        Args:
            programs: what `programs` gave.
        """
        recipe = self.recipe
        return read_together(programs, self.calibration, self.held_out, recipe.limit, recipe.seed)


def chosen_together(
    asked: Asked,
    models: Sequence[Path],
    calibration: Sequence[Path],
    held_out: Sequence[Path],
    written: Mapping[str, Path | None],
    metric: str | None,
) -> Chosen:
    """What is to be done; what cannot be is found before any work.

    Args:
        asked: the options that all programs have in common.
        models, calibration, held_out: as ``NAME=FILE``.
        written: the files that the command writes, by the option.
        metric: what would judge a single program.

    Raises:
        DataError: a name is missing, unknown or given twice; a file is written and read.
        RecipeError, SaveError: as `chosen_recipe`.
    """
    if metric is not None:
        raise DataError(
            "--metric judges the results of one program: leave it out where there are several"
        )
    files = by_name("model", models)
    names = list(files)
    data = by_name("--calibration", calibration, names)
    kept = by_name("--held-out", held_out, names)
    read = {
        **files_of("the model", files),
        **_of_data("--calibration", data),
        **_of_data("--held-out", kept),
    }
    check_outputs(written, read)
    recipe = chosen_recipe(replace(asked, model=next(iter(files.values()))), written)
    return Chosen(recipe, files, data, kept)


def _of_data(what: str, given: Mapping[str, Path]) -> dict[str, Path | None]:
    return {name: file_of(path) for name, path in files_of(what, given).items()}
