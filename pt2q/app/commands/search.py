"""`pt2q search`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pt2q.app.console import complain, console, steps
from pt2q.app.options import Asked, BatchCount, JsonFile, MetricFunction, Processes

HELP = (
    "Find the cheapest way to quantize a model that keeps within a bound.\n\n"
    "What each layer loses in each form is measured once; the whole model at most log2 N times for "
    "N layers. Where the bound cannot be met, no recipe is written, and the exit code is 3."
)
NOT_MET = 3
OutFile = Annotated[
    Path | None, typer.Option("--out", "-o", help="Write the choice here, as a recipe.")
]
MinSqnr = Annotated[float | None, typer.Option(help="Keep so many dB at the output.")]
MaxDrop = Annotated[float | None, typer.Option(help="Lose at most this of what --metric says.")]
MaxCost = Annotated[
    float | None, typer.Option(help="Spend at most this share of the float model's cost.")
]
Candidates = Annotated[
    str, typer.Option(help="Forms to choose from: float, int16, int8, int4, with commas between.")
]
Cost = Annotated[str, typer.Option(help="macs (multiply-accumulates times bits) or bytes.")]
Evaluations = Annotated[
    int | None, typer.Option(min=1, help="Measure the whole model at most so often.")
]
Minutes = Annotated[float | None, typer.Option(min=0, help="Stop measuring after so long.")]


def search(
    asked: Asked,
    out: OutFile = None,
    min_sqnr: MinSqnr = None,
    metric: MetricFunction = None,
    max_drop: MaxDrop = None,
    max_cost: MaxCost = None,
    candidates: Candidates = "float,int8",
    cost: Cost = "macs",
    evaluations: Evaluations = None,
    minutes: Minutes = None,
    batches: BatchCount = 8,
    processes: Processes = 1,
    json: JsonFile = None,
) -> None:
    """Find the cheapest way to quantize a model that keeps within a bound."""
    from pt2q import debug
    from pt2q.app.applied_changes import with_changes
    from pt2q.app.debug_job import subject
    from pt2q.app.written import write_json, write_recipe

    bound = debug.Bound(min_sqnr, max_drop, max_cost)
    given = subject(asked, batches, {"--json": json, "--out": out}, metric)
    with steps("measuring") as progress:
        found = debug.search(
            given.setup(),
            given.measured,
            bound,
            metric=given.metric,
            candidates=tuple(candidates.split(",")),
            cost=cost,
            evaluations=evaluations,
            minutes=minutes,
            processes=processes,
            progress=progress,
        )
    print(found.text(console().width))
    write_json(json, found)
    if not found.met:
        complain("the bound cannot be met; no recipe is written")
        raise typer.Exit(NOT_MET)
    if out is not None:
        made = with_changes(given.recipe, given.program, found.changes)
        note = f"{asked.model.name}: {found.measure} {found.chosen.value:.4g}"
        write_recipe(out, made, [note])
