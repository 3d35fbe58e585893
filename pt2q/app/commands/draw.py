"""`pt2q draw`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from torch.export import ExportedProgram

from pt2q import debug
from pt2q.app.compare_job import run_comparison
from pt2q.app.console import track
from pt2q.app.data.holding_out import read_data
from pt2q.app.options import BackendName, ModelFile, RecipeFile, chosen_recipe
from pt2q.app.program_file import read_program
from pt2q.app.recipe import Recipe
from pt2q.errors import DataError
from pt2q.files import check_outputs, write_bytes
from pt2q.flow import prepare_pt2e

HELP = (
    "Draw a model's graph, grouped by module, with what would be quantized.\n\n"
    "With --calibration, operators have the colours of their total errors. A .json is node data "
    "for Model Explorer, to be opened beside the model; .dot is text for Graphviz."
)
FORMS = (".svg", ".png", ".pdf", ".dot", ".json")
Calibration = Annotated[
    Path | None, typer.Option(help="Inputs, as for 'pt2q quantize', to measure errors on.")
]
OutFile = Annotated[Path, typer.Option("--out", "-o", help=f"One of {', '.join(FORMS)}.")]


def draw(
    model: ModelFile,
    out: OutFile,
    calibration: Calibration = None,
    backend: BackendName = None,
    recipe: RecipeFile = None,
) -> None:
    """Draw a model's graph, grouped by module, with what would be quantized."""
    if out.suffix not in FORMS:
        raise DataError(f"{out}: write one of {', '.join(FORMS)}")
    chosen = chosen_recipe(backend, recipe)
    chosen.quantizer()
    read = {"the model": model, "--calibration": calibration, "--recipe": recipe}
    check_outputs({"--out": out}, read)
    program = read_program(model)
    errors = {} if calibration is None else _errors(program, calibration, chosen)
    if out.suffix != ".json":
        debug.save_drawing(prepare_pt2e(program, chosen.quantizer()), out, errors)
    elif calibration is None:
        raise DataError(f"{out}: figures for nodes are measured on data; give --calibration")
    else:
        write_bytes(out, json.dumps(debug.overlay(errors), allow_nan=False).encode())
    print(f"written: {out}")


def _errors(program: ExportedProgram, calibration: Path, recipe: Recipe) -> dict[str, float]:
    data = read_data(program, calibration, limit=recipe.limit, seed=recipe.seed)
    return debug.errors_by_node(run_comparison(program, data, recipe, track))
