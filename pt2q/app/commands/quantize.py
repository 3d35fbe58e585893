"""`pt2q quantize`."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pt2q.app.console import complain, console, steps, track
from pt2q.app.loading import load, loading
from pt2q.app.options import Asked, CalibrationFiles, HeldOutFiles, JsonFile, MetricFunction
from pt2q.offers import ALGORITHMS, EFFORTS

if TYPE_CHECKING:
    from pt2q.app.programs.summary import ProgramsSummary
    from pt2q.app.recipe import Recipe
    from pt2q.app.summary import Summary
    from pt2q.quantizers import Report

# Paragraphs in one line each: typer keeps line breaks.
HELP = (
    "Quantize an exported model and write it for a backend.\n\n"
    "Arrays of a .npz are taken by input name or else in order; a .pt holds a tensor, a tuple, a "
    "dict by input name, or a list of these. The first axis is split into batches of the exported "
    "size. A tenth is held out to compare with float, drawn by --seed. Or FILE.py:FUNCTION gives "
    "such things, one after the other, or a folder is one of Hugging Face datasets'."
)
Programs = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="[NAME=FILE]...",
        help="Several programs of one model: each as NAME=FILE, which becomes a method of the file "
        "that is written; --calibration and --held-out then are NAME=FILE, once for each.",
        show_default=False,
    ),
]
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
    calibration: CalibrationFiles,
    out: OutFile,
    programs: Programs = None,
    held_out: HeldOutFiles = None,
    effort: Effort = None,
    algorithm: AlgorithmNames = None,
    resume: Resume = None,
    report: ShowReport = False,
    metric: MetricFunction = None,
    json: JsonFile = None,
    low_memory: LowMemory = False,
) -> None:
    """Quantize an exported model and write it for a backend."""
    from pt2q.app.programs.naming import are_named, only

    models = [asked.model, *(programs or ())]
    how = _How(out, effort, algorithm, resume, report, metric, json)
    with loading():
        memory = _memory(low_memory)
    with memory:
        if are_named(models):
            _quantize_together(asked, models, calibration, held_out or [], how)
            return
        one = only("--calibration", calibration), only("--held-out", held_out or [])
        _quantize(replace(asked, calibration=one[0], held_out=one[1]), how)


@dataclass(frozen=True)
class _How:
    """The options of their names."""

    out: Path
    effort: str | None
    algorithm: list[str] | None
    resume: Path | None
    report: bool
    metric: str | None
    json: Path | None

    @property
    def written(self) -> dict[str, Path | None]:
        return {"--out": self.out, "--json": self.json}


def _memory(low: bool) -> AbstractContextManager[object]:
    from pt2q.ir.storage import low_memory

    return low_memory() if low else nullcontext()


def _quantize(asked: Asked, how: _How) -> None:
    with loading():
        from pt2q.app.chosen import check_suffix, chosen_recipe, data_of
        from pt2q.app.metrics import read_metric
        from pt2q.app.program_file import read_program
        from pt2q.app.quantize_job import run_job, take_part
        from pt2q.app.summary import Summary
        from pt2q.deploy.registry import BACKENDS
        from pt2q.distributed import joined

        chosen = chosen_recipe(asked, how.written, how.metric)
        chosen = _improved(chosen, how.effort, how.algorithm)
        row = BACKENDS[chosen.backend]
        load(row.loads)
    check_suffix(how.out, row)
    program = read_program(asked.model)
    data = data_of(program, asked, chosen)
    judge = read_metric(how.metric, data.held_out.numbers)
    with joined() as ranks, steps("improving") as progress:
        if ranks.rank > 0:  # of those that torchrun started one writes and prints
            take_part(program, data, chosen, how.resume)
            return
        show = (lambda found: print(f"{found.text(console().width)}\n")) if how.report else None
        outcome = run_job(program, data, chosen, track, how.out, show, progress, how.resume, judge)
    _show(Summary(f"{asked.model.name} for {row.name}", outcome, row), how)


def _quantize_together(
    asked: Asked, models: list[Path], calibration: list[Path], held_out: list[Path], how: _How
) -> None:
    from pt2q.app.chosen import check_suffix
    from pt2q.app.programs.chosen import chosen_together
    from pt2q.app.programs.job import run_together, take_part_together, writes_together
    from pt2q.app.programs.summary import ProgramsSummary
    from pt2q.deploy.registry import BACKENDS
    from pt2q.distributed import joined

    chosen = chosen_together(asked, models, calibration, held_out, how.written, how.metric)
    recipe = _improved(chosen.recipe, how.effort, how.algorithm)
    row = BACKENDS[recipe.backend]
    writes_together(row)
    check_suffix(how.out, row)
    programs = chosen.programs()
    data = chosen.data(programs)
    with joined() as ranks, steps("improving") as progress:
        if ranks.rank > 0:
            take_part_together(programs, data, recipe, how.resume)
            return
        show = _show_reports if how.report else None
        outcome = run_together(
            programs, data, recipe, how.out, show=show, progress=progress, resume=how.resume
        )
    _show(ProgramsSummary(f"{', '.join(programs)} for {row.name}", outcome, row), how)


def _show_reports(reports: dict[str, Report]) -> None:
    for name, found in reports.items():
        print(f"{name}:\n{found.text(console().width)}\n")


def _show(summary: Summary | ProgramsSummary, how: _How) -> None:
    """Print what came out, and write it down where that was asked for."""
    from pt2q.app.written import write_json

    outcome = summary.outcome
    if how.report and outcome.improved.rows:
        print(f"{outcome.improved.text(console().width)}\n")
    console().print(summary.table())
    print(f"written: {how.out}")
    write_json(how.json, summary, file=str(how.out))
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
