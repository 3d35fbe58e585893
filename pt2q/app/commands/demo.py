"""`pt2q demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pt2q.app.console import console, track

OutFolder = Annotated[Path, typer.Option(help="The folder for the two .pte files.")]


def demo(out: OutFolder = Path("pt2q-demo")) -> None:
    """Quantize a network for handwritten digits and compare it with float, in the runtime."""
    from pt2q.demo.run import run_demo, table

    result = run_demo(out, track)
    console().print(table(result))
