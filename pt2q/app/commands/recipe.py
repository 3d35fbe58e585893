"""`pt2q recipe init`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pt2q.app.options import NAMES
from pt2q.errors import RecipeError
from pt2q.files import write_bytes
from pt2q.offers import DEFAULT_BACKEND

HELP = "Write down how to quantize, as a file."
Backend = Annotated[str, typer.Option(help=f"What runs the result: {NAMES}")]
OutFile = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="The file to write; printed if not given, or if -."),
]


def init(backend: Backend = DEFAULT_BACKEND, out: OutFile = None) -> None:
    """Write a commented recipe whose settings are the defaults of a backend."""
    from pt2q.app.recipe import template

    text = template(backend)
    if out is None or str(out) == "-":
        print(text, end="")
        return
    if out.is_file():
        raise RecipeError(f"{out} is there already; write to another name, or remove it first")
    write_bytes(out, text.encode())
    print(f"written: {out}")
