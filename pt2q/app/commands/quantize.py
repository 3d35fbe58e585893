"""`pt2q quantize`."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from pt2q.algorithms import ALGORITHMS, algorithm_named, check_choice
from pt2q.algorithms.effort import EFFORTS
from pt2q.app.console import complain, console, steps, track
from pt2q.app.data.holding_out import Data, read_data
from pt2q.app.options import (
    BackendName,
    CalibrationFile,
    ModelFile,
    RecipeFile,
    check_suffix,
    chosen_recipe,
)
from pt2q.app.program_file import read_program
from pt2q.app.quantize_job import Outcome, run_job, take_part
from pt2q.app.recipe import Recipe
from pt2q.deploy.backend import Backend
from pt2q.deploy.registry import BACKENDS
from pt2q.distributed import joined
from pt2q.files import check_outputs
from pt2q.quantizers import Report

# Paragraphs in one line each: typer keeps line breaks.
HELP = (
    "Quantize an exported model and write it for a backend.\n\n"
    "Arrays of a .npz are taken by input name or else in order; a .pt holds a tensor, a tuple, a "
    "dict by input name, or a list of these. The first axis is split into batches of the exported "
    "size. A tenth is held out to compare with float, drawn by --seed. Or FILE.py:FUNCTION gives "
    "such things, one after the other, or a folder is one of Hugging Face datasets'."
)
OutFile = Annotated[Path, typer.Option("--out", "-o", help="The file to write.")]
PerTensor = Annotated[
    bool, typer.Option("--per-tensor", help="One scale per weight, not one per channel.")
]
Dynamic = Annotated[bool, typer.Option("--dynamic", help="Measure activation ranges at run time.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Calibrate on at most so many batches.")]
Effort = Annotated[
    str | None,
    typer.Option(help=f"Win accuracy back, choosing how: {', '.join(EFFORTS)}."),
]
AlgorithmNames = Annotated[
    list[str] | None,
    typer.Option(
        "--algorithm",
        help=f"Win accuracy back by this; may be given several times: {', '.join(ALGORITHMS)}.",
    ),
]
Seed = Annotated[
    int | None, typer.Option(min=0, help="Of what is held out, and of what algorithms draw.")
]
Resume = Annotated[
    Path | None,
    typer.Option(
        "--resume",
        help="A folder that keeps how far this came; a run that was stopped goes on from there.",
    ),
]
HeldOut = Annotated[
    Path | None,
    typer.Option(help="Inputs to compare on, in the place of a tenth of the others."),
]
ShowReport = Annotated[bool, typer.Option("--report", help="Print what became of each operator.")]


def quantize(
    model: ModelFile,
    calibration: CalibrationFile,
    out: OutFile,
    backend: BackendName = None,
    recipe: RecipeFile = None,
    per_tensor: PerTensor = False,
    dynamic: Dynamic = False,
    limit: Limit = None,
    effort: Effort = None,
    algorithm: AlgorithmNames = None,
    seed: Seed = None,
    resume: Resume = None,
    held_out: HeldOut = None,
    report: ShowReport = False,
) -> None:
    """Quantize an exported model and write it for a backend."""
    chosen = _changed(chosen_recipe(backend, recipe), per_tensor, dynamic, limit)
    chosen = _improved(chosen, effort, algorithm, seed)
    row = BACKENDS[chosen.backend]
    chosen.quantizer()  # what cannot be asked for is found before the work
    read = {
        "the model": model,
        "--calibration": calibration,
        "--recipe": recipe,
        "--held-out": held_out,
    }
    check_outputs({"--out": out}, {**read, "--held-out": held_out})
    check_suffix(out, row)
    program = read_program(model)
    data = read_data(program, calibration, held_out, chosen.limit, chosen.seed)
    show = _print_report if report else None
    with joined() as ranks, steps("improving") as progress:
        if ranks.rank > 0:  # of those that torchrun started one writes and prints
            take_part(program, data, chosen, resume)
            return
        outcome = run_job(program, data, chosen, track, out, show, progress, resume)
    if report and outcome.improved.rows:
        print(f"{outcome.improved}\n")
    console().print(_summary(f"{model.name} for {row.name}", outcome, row))
    print(f"written: {out}")
    for line in outcome.deployed.warnings:
        complain(line, "warning")


def _changed(recipe: Recipe, per_tensor: bool, dynamic: bool, limit: int | None) -> Recipe:
    changed = recipe.changed(
        mode="dynamic" if dynamic else None, weight_scales="tensor" if per_tensor else None
    )
    return changed if limit is None else replace(changed, limit=limit)


def _improved(
    recipe: Recipe, effort: str | None, names: list[str] | None, seed: int | None
) -> Recipe:
    """With what options say of algorithms in the place of what the recipe says."""
    if effort is not None or names:
        algorithms = tuple(algorithm_named(name)() for name in names or ())
        check_choice(algorithms, effort)
        recipe = replace(recipe, effort=effort, algorithms=algorithms)
    return recipe if seed is None else replace(recipe, seed=seed)


def _print_report(report: Report) -> None:
    print(report.text(console().width))
    print()


def _summary(title: str, outcome: Outcome, backend: Backend) -> Table:
    rows = outcome.report.rows
    table = Table(title=title, show_header=False, title_justify="left")
    for name, value in (
        ("quantized", f"{sum(row.quantized for row in rows)} of {len(rows)} operators"),
        ("calibrated on", _counts(outcome.data)),
        ("file size", _sizes(outcome.float_size, outcome.deployed.size, backend)),
        *_improvement(outcome),
        ("SQNR against float", _decibels(outcome, backend)),
        *outcome.deployed.rows,
    ):
        table.add_row(name, value)
    return table


def _counts(data: Data) -> str:
    calibrated, held_out = len(data.calibration), len(data.held_out)
    return f"{calibrated} batch(es), {held_out} more held out, {data.how}"


def _improvement(outcome: Outcome) -> list[tuple[str, str]]:
    rows = outcome.improved.rows
    names = dict.fromkeys(row.algorithm for row in rows)
    changed = {name: sum(row.kept for row in rows if row.algorithm == name) for name in names}
    text = ", ".join(f"{name} {count}" for name, count in changed.items())
    return [("layers changed by", text)] if text else []


def _sizes(float_size: int, size: int, backend: Backend) -> str:
    if not backend.deploys_float:
        return f"{_megabytes(size)}, with code; float tensors {_megabytes(float_size)}"
    ratio = float_size / size
    change = f"{ratio:.2f}x smaller" if ratio >= 1 else f"{1 / ratio:.2f}x larger"
    return f"float {_megabytes(float_size)}, int8 {_megabytes(size)}, {change}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB" if size >= 1e5 else f"{size / 1e6:.4f} MB"


def _decibels(outcome: Outcome, backend: Backend) -> str:
    value = outcome.figures.file
    if math.isnan(value):
        return "no floating-point output"
    where = f"held-out data, in {outcome.deployed.runtime or backend.runtime}"
    return f"equal, {where}" if math.isinf(value) else f"{value:.1f} dB, {where}"
