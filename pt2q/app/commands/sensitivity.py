"""`pt2q sensitivity`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pt2q.app.console import console, steps
from pt2q.app.options import Asked, BatchCount, JsonFile, MetricFunction, Processes, Worst

HELP = (
    "Say what quantizing each group of tensors, and each layer, costs at the output.\n\n"
    "Alone: nothing else is quantized. Without: all else is. The worst come first. A model is "
    "quantized as by 'pt2q quantize', which see for the files; nothing is lowered."
)
Passes = Annotated[
    float,
    typer.Option(
        min=1, help="A bound on what it takes: runs of the float model for each batch measured on."
    ),
]
State = Annotated[
    Path | None,
    typer.Option(help="Keep what was measured in this file, and go on from there next time."),
]


def sensitivity(
    asked: Asked,
    metric: MetricFunction = None,
    batches: BatchCount = 8,
    passes: Passes = 25.0,
    state: State = None,
    worst: Worst = None,
    processes: Processes = 1,
    json: JsonFile = None,
) -> None:
    """Say what quantizing each group of tensors, and each layer, costs at the output."""
    from pt2q import debug
    from pt2q.app.debug_job import subject
    from pt2q.app.written import write_json

    given = subject(asked, batches, {"--json": json, "--state": state}, metric)
    prepared, _ = given.prepared()
    with steps("measuring") as progress:
        found = debug.sensitivity(
            prepared,
            given.measured,
            metric=given.metric,
            passes=passes,
            state=state,
            processes=processes,
            progress=progress,
        )
    print((found if worst is None else found.worst(worst)).text(console().width))
    write_json(json, found)
