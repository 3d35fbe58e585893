"""What several commands take, and what is found wrong with it before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pt2q.app import recipe as recipes
from pt2q.app.recipe import Recipe
from pt2q.app.recipe.config import default_settings
from pt2q.deploy.backend import Backend
from pt2q.deploy.registry import BACKENDS, DEFAULT
from pt2q.errors import DataError, RecipeError

ModelFile = Annotated[
    Path, typer.Argument(help="A float model, as torch.export.save wrote it.", show_default=False)
]
CalibrationFile = Annotated[
    Path,
    typer.Option(
        "--calibration", help="Inputs of the model: a .npz or .pt file, or a folder of them."
    ),
]
BackendName = Annotated[
    str | None,
    typer.Option(
        "--backend",
        help=f"What runs the result: {', '.join(BACKENDS)}; if not given the recipe's, or else "
        f"{DEFAULT}.",
    ),
]
RecipeFile = Annotated[
    Path | None,
    typer.Option("--recipe", help="A TOML file that says how; see: pt2q recipe init"),
]
JsonFile = Annotated[
    Path | None, typer.Option("--json", help="Write all that was found here, too.")
]
MetricFunction = Annotated[
    str | None,
    typer.Option(
        "--metric",
        help="FILE.py:FUNCTION judges instead of the signal to noise ratio: given the results, "
        "batch by batch, and the positions of the batches in the data, it returns a number, "
        "larger for better.",
    ),
]
BatchCount = Annotated[
    int, typer.Option("--batches", min=1, help="Measure on so many batches, the last of the data.")
]


Processes = Annotated[
    int,
    typer.Option(
        "--processes", min=1, help="Measure in so many processes; figures are those of one."
    ),
]


def chosen_recipe(backend: str | None, path: Path | None) -> Recipe:
    """What is to be done, from the options that say so.

    Args:
        backend: by name; None takes that of the recipe.
        path: a recipe file; None takes the defaults of the backend.

    Raises:
        UnknownNameError: there is no such backend.
        RecipeError: the recipe is for another backend, or cannot be read.
    """
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
