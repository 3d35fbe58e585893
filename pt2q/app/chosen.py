"""What the options of a command ask for: a recipe, a program and data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch.export import ExportedProgram

from pt2q.app import recipe as recipes
from pt2q.app.data.holding_out import Data, read_data
from pt2q.app.data.reading import read_batches
from pt2q.app.data.source import Batches
from pt2q.app.function_file import file_of
from pt2q.app.options import Asked
from pt2q.app.recipe import Recipe
from pt2q.app.recipe.config import default_settings
from pt2q.deploy.backend import Backend
from pt2q.deploy.registry import BACKENDS, DEFAULT
from pt2q.deploy.signature import signature_of
from pt2q.errors import DataError, RecipeError
from pt2q.files import check_outputs


def chosen_recipe(
    asked: Asked, written: Mapping[str, Path | None], metric: str | None = None
) -> Recipe:
    """What is to be done; what cannot be is found before any work.

    Args:
        asked: the options.
        written: the files that the command writes, by the option.
        metric: a function of the user's, whose file is read.

    Raises:
        UnknownNameError: there is no such backend.
        RecipeError: the recipe is for another backend, cannot be read, or asks for what cannot be.
        DataError, SaveError: a file cannot be written, or is read.
    """
    found = _written_down(asked.backend, asked.recipe).changed(
        mode="dynamic" if asked.dynamic else None,
        weight_scales="tensor" if asked.per_tensor else None,
    )
    limit = found.limit if asked.limit is None else asked.limit
    seed = found.seed if asked.seed is None else asked.seed
    found = replace(found, limit=limit, seed=seed)
    found.quantizer()
    judged_by = None if metric is None else file_of(Path(metric))
    check_outputs(written, {**asked.files, "--metric": judged_by})
    return found


def data_of(program: ExportedProgram, asked: Asked, recipe: Recipe) -> Data:
    """The data that a command was given.

    Args:
        program: the float model.
        asked: the options.
        recipe: what they ask for.

    Raises:
        DataError: it cannot be read, or does not fit.
    """
    assert asked.calibration is not None
    return read_data(program, asked.calibration, asked.held_out, recipe.limit, recipe.seed)


def all_of(program: ExportedProgram, asked: Asked, recipe: Recipe) -> Batches:
    """All of the data, for a command that quantizes nothing.

    Args:
        program, asked, recipe: as for `data_of`.

    Raises:
        DataError: it cannot be read, or does not fit.
    """
    assert asked.calibration is not None
    return read_batches(asked.calibration, signature_of(program), recipe.limit)


def _written_down(backend: str | None, path: Path | None) -> Recipe:
    row = BACKENDS[DEFAULT if backend is None else backend]
    if path is None:
        return Recipe(row.name, default_settings(row))
    found = recipes.load(path)
    if backend not in (None, found.backend):
        raise RecipeError(
            f"{path} is for {found.backend}, not for {backend}: leave --backend out, or write a "
            f"recipe for it with: pt2q recipe init --backend {backend}"
        )
    return found


def check_suffix(out: Path, backend: Backend) -> None:
    """Refuse an output that the backend would not read.

    Args:
        out: the file to write.
        backend: what is to read it.

    Raises:
        DataError: it is refused.
    """
    if out.suffix != backend.suffix:
        raise DataError(
            f"{backend.name} reads {backend.suffix} files: write {out.with_suffix(backend.suffix)}"
            f", not {out}"
        )
