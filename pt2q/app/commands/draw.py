"""`pt2q draw`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pt2q.app.console import track
from pt2q.app.options import Asked
from pt2q.errors import DataError
from pt2q.files import write_bytes

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from pt2q.app.recipe import Recipe

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


def draw(asked: Asked, out: OutFile, calibration: Calibration = None) -> None:
    """Draw a model's graph, grouped by module, with what would be quantized."""
    from pt2q import debug
    from pt2q.app.chosen import chosen_recipe
    from pt2q.app.program_file import read_program
    from pt2q.flow import prepare_pt2e

    if out.suffix not in FORMS:
        raise DataError(f"{out}: write one of {', '.join(FORMS)}")
    asked = replace(asked, calibration=calibration)
    chosen = chosen_recipe(asked, {"--out": out})
    program = read_program(asked.model)
    errors = {} if calibration is None else _errors(program, asked, chosen)
    if out.suffix != ".json":
        debug.save_drawing(prepare_pt2e(program, chosen.quantizer()), out, errors)
    elif calibration is None:
        raise DataError(f"{out}: figures for nodes are measured on data; give --calibration")
    else:
        write_bytes(out, json.dumps(debug.overlay(errors), allow_nan=False).encode())
    print(f"written: {out}")


def _errors(program: ExportedProgram, asked: Asked, recipe: Recipe) -> dict[str, float]:
    from pt2q import debug
    from pt2q.app.chosen import data_of
    from pt2q.app.compare_job import run_comparison

    found = run_comparison(program, data_of(program, asked, recipe), recipe, track).report
    assert isinstance(found, debug.Comparison)
    return debug.errors_by_node(found)
