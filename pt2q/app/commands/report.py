"""`pt2q report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pt2q.app.console import steps
from pt2q.app.options import Asked, BatchCount
from pt2q.errors import DataError
from pt2q.files import write_bytes

HELP = (
    "Write all that is known of a quantized model's accuracy, as one page.\n\n"
    "Operators with their errors, histograms with the ranges chosen, sensitivity, sizes, the "
    "graph. The page fetches nothing. A model is quantized as by 'pt2q quantize', which see for "
    "the files."
)
OutFile = Annotated[Path, typer.Option("--out", "-o", help="The .html file to write.")]


def report(
    asked: Asked,
    out: OutFile,
    batches: BatchCount = 8,
) -> None:
    """Write all that is known of a quantized model's accuracy, as one page."""
    from pt2q import debug
    from pt2q.app.debug_job import subject

    if out.suffix != ".html":
        raise DataError(f"{out}: the report is a page, write {out.with_suffix('.html')}")
    given = subject(asked, batches, {"--out": out})
    prepared, decisions = given.prepared()
    with steps("measuring") as progress:
        page = debug.report_page(
            given.program,
            prepared,
            given.measured,
            decisions=decisions,
            title=asked.model.name,
            progress=progress,
        )
    write_bytes(out, page.encode())
    print(f"written: {out}")
