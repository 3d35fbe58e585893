"""`pt2q compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pt2q.app.compare_job import run_comparison, run_in_runtime
from pt2q.app.console import console, track
from pt2q.app.data.holding_out import read_data
from pt2q.app.options import BackendName, CalibrationFile, ModelFile, RecipeFile, chosen_recipe
from pt2q.app.program_file import read_program
from pt2q.app.written import write_json
from pt2q.debug import Comparison, RuntimeComparison
from pt2q.files import check_outputs

HELP = (
    "Say, operator by operator, where a quantized model departs from float.\n\n"
    "It is quantized as by 'pt2q quantize', which see for the files; nothing is lowered but "
    "with --in-runtime. Local: what an operator adds by itself. Total: with all that comes before "
    "it."
)
Worst = Annotated[
    int | None, typer.Option(min=1, help="Print the operators with the largest local errors.")
]
InRuntime = Annotated[
    bool,
    typer.Option(
        "--in-runtime", help="Lower it, and compare the values inside the runtime instead."
    ),
]
JsonFile = Annotated[Path | None, typer.Option(help="Write the whole report here, too.")]


def compare(
    model: ModelFile,
    calibration: CalibrationFile,
    backend: BackendName = None,
    recipe: RecipeFile = None,
    worst: Worst = None,
    in_runtime: InRuntime = False,
    json: JsonFile = None,
) -> None:
    """Say, operator by operator, where a quantized model departs from float."""
    chosen = chosen_recipe(backend, recipe)
    chosen.quantizer()  # what cannot be asked for is found before the work
    read = {"the model": model, "--calibration": calibration, "--recipe": recipe}
    check_outputs({"--json": json}, read)
    program = read_program(model)
    data = read_data(program, calibration, limit=chosen.limit, seed=chosen.seed)
    given = program, data, chosen, track
    report: Comparison | RuntimeComparison = (
        run_in_runtime(*given) if in_runtime else run_comparison(*given)
    )
    shown = report if worst is None else report.worst(worst)
    print(shown.text(console().width))
    write_json(json, report)
