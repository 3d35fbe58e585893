"""`pt2q quantize`."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pt2q.app.console import complain, console, steps, track
from pt2q.app.options import Asked, JsonFile, MetricFunction
from pt2q.offers import ALGORITHMS, EFFORTS

if TYPE_CHECKING:
    from pt2q.app.recipe import Recipe

# Paragraphs in one line each: typer keeps line breaks.
HELP = (
    "Quantize an exported model and write it for a backend.\n\n"
    "Arrays of a .npz are taken by input name or else in order; a .pt holds a tensor, a tuple, a "
    "dict by input name, or a list of these. The first axis is split into batches of the exported "
    "size. A tenth is held out to compare with float, drawn by --seed. Or FILE.py:FUNCTION gives "
    "such things, one after the other, or a folder is one of Hugging Face datasets'."
)
OutFile = Annotated[Path, typer.Option("--out", "-o", help="The file to write.")]
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
Resume = Annotated[
    Path | None,
    typer.Option(
        "--resume",
        help="A folder that keeps how far this came; a run that was stopped goes on from there.",
    ),
]
LowMemory = Annotated[
    bool,
    typer.Option(
        "--low-memory",
        help="Hold little more than one layer at a time until the model is quantized.",
    ),
]
ShowReport = Annotated[bool, typer.Option("--report", help="Print what became of each operator.")]


def quantize(
    asked: Asked,
    out: OutFile,
    effort: Effort = None,
    algorithm: AlgorithmNames = None,
    resume: Resume = None,
    report: ShowReport = False,
    metric: MetricFunction = None,
    json: JsonFile = None,
    low_memory: LowMemory = False,
) -> None:
    """Quantize an exported model and write it for a backend."""
    with _memory(low_memory):
        _quantize(asked, out, effort, algorithm, resume, report, metric, json)


def _memory(low: bool) -> AbstractContextManager[object]:
    from pt2q.ir.storage import low_memory

    return low_memory() if low else nullcontext()


def _quantize(
    asked: Asked,
    out: Path,
    effort: str | None,
    algorithm: list[str] | None,
    resume: Path | None,
    report: bool,
    metric: str | None,
    json: Path | None,
) -> None:
    from pt2q.app.chosen import check_suffix, chosen_recipe, data_of
    from pt2q.app.metrics import read_metric
    from pt2q.app.program_file import read_program
    from pt2q.app.quantize_job import run_job, take_part
    from pt2q.app.summary import Summary
    from pt2q.app.written import write_json
    from pt2q.deploy.registry import BACKENDS
    from pt2q.distributed import joined

    chosen = _improved(
        chosen_recipe(asked, {"--out": out, "--json": json}, metric), effort, algorithm
    )
    row = BACKENDS[chosen.backend]
    check_suffix(out, row)
    program = read_program(asked.model)
    data = data_of(program, asked, chosen)
    judge = read_metric(metric, data.held_out.numbers)
    with joined() as ranks, steps("improving") as progress:
        if ranks.rank > 0:  # of those that torchrun started one writes and prints
            take_part(program, data, chosen, resume)
            return
        show = (lambda found: print(f"{found.text(console().width)}\n")) if report else None
        outcome = run_job(program, data, chosen, track, out, show, progress, resume, judge)
    if report and outcome.improved.rows:
        print(f"{outcome.improved.text(console().width)}\n")
    summary = Summary(f"{asked.model.name} for {row.name}", outcome, row)
    console().print(summary.table())
    print(f"written: {out}")
    write_json(json, summary, file=str(out))
    for line in outcome.deployed.warnings:
        complain(line, "warning")


def _improved(recipe: Recipe, effort: str | None, names: list[str] | None) -> Recipe:
    """With what options say of algorithms in the place of what the recipe says."""
    from pt2q.algorithms import algorithm_named, check_choice

    if effort is None and not names:
        return recipe
    algorithms = tuple(algorithm_named(name)() for name in names or ())
    check_choice(algorithms, effort)
    return replace(recipe, effort=effort, algorithms=algorithms)
