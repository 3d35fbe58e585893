"""`pt2q doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pt2q.app.console import console, steps
from pt2q.app.options import Asked, JsonFile

HELP = (
    "Say why accuracy is lost, and what wins it back.\n\n"
    "What the output feels most is looked into; what may help is tried, and its gain measured on "
    "data that was not calibrated on. A model is quantized as by 'pt2q quantize', which see for "
    "the files; nothing is lowered."
)
OutFile = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Write a recipe here that makes the changes worth making."),
]
Trials = Annotated[
    int, typer.Option(min=1, help="Try so many changes at most; each takes a calibration.")
]


def doctor(
    asked: Asked,
    out: OutFile = None,
    trials: Trials = 40,
    json: JsonFile = None,
) -> None:
    """Say why accuracy is lost, and what wins it back."""
    from pt2q import debug
    from pt2q.app.applied_changes import with_changes
    from pt2q.app.debug_job import subject
    from pt2q.app.written import write_json, write_recipe

    given = subject(asked, None, {"--json": json, "--out": out})
    with steps("examining") as progress:
        found = debug.doctor(
            given.setup(), given.measured, calibration=given.calls, trials=trials, progress=progress
        )
    print(found.text(console().width))
    write_json(json, found)
    if out is not None:
        made = with_changes(given.recipe, given.program, found.changes)
        done = f"{asked.model.name}: {found.before:.1f} dB, with these changes {found.after:.1f} dB"
        write_recipe(out, made, [done, *map(str, found.changes)])
