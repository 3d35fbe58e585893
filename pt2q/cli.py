"""The command line: `pt2q quantize` and `pt2q demo`.

Bad input ends in one line on standard error: exit code 2 for the command line itself, 1 for
files and models.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from typer.exceptions import Abort, TyperException

from pt2q.errors import Pt2qError, Pt2qWarning

T = TypeVar("T")

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Quantize programs captured with torch.export.",
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code.

    Args:
        argv: the arguments; those of the process when None.
    """
    sys.exit(_run(None if argv is None else list(argv)))


def _run(argv: list[str] | None) -> int:
    try:
        with _plain_warnings():
            code = app(args=argv, prog_name="pt2q", standalone_mode=False)
        return int(code or 0)
    except TyperException as error:
        return _fail(error.format_message(), 2)
    except Pt2qError as error:
        return _fail(str(error), 1)
    except (Abort, KeyboardInterrupt):
        return _fail("interrupted", 130)


def _fail(message: str, code: int) -> int:
    print(f"pt2q: {' '.join(message.split())}", file=sys.stderr)
    return code


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Our own warnings as one line each, without source lines; third parties' not at all."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", Pt2qWarning)
        warnings.showwarning = lambda message, *_, **__: print(
            f"pt2q: warning: {' '.join(str(message).split())}", file=sys.stderr
        )
        yield


def _version(wanted: bool) -> None:
    if wanted:
        from pt2q import __version__

        print(f"pt2q {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def quantize(
    model: Annotated[Path, typer.Argument(help="A float model, as torch.export.save wrote it.")],
    calibration: Annotated[
        Path, typer.Option(help="Inputs of the model: a .npz or .pt file, or a folder of them.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .pte to write.")],
    backend: Annotated[str, typer.Option(help="What runs the result.")] = "xnnpack",
    per_tensor: Annotated[
        bool, typer.Option("--per-tensor", help="One scale per weight, not one per channel.")
    ] = False,
    dynamic: Annotated[
        bool, typer.Option("--dynamic", help="Measure activation ranges at run time.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Calibrate on at most so many batches.")
    ] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Print what became of each operator.")
    ] = False,
) -> None:
    """Quantize an exported model and lower it to an ExecuTorch program.

    Arrays of a .npz are taken by input name or else in order; a .pt holds a tensor, a tuple, a
    dict by input name, or a list of these. The first axis is split into batches of the exported
    size. The last tenth is held out to compare with float.
    """
    from pt2q.data import read_batches, read_program, signature_of
    from pt2q.io import ensure_writable
    from pt2q.job import Options, quantizer_for, run_job

    options = Options(backend, per_tensor, dynamic, limit)
    quantizer_for(options)
    ensure_writable(out)
    program = read_program(model)
    batches = read_batches(calibration, signature_of(program))
    outcome = run_job(program, batches, options, _track)
    outcome.program.save(out)

    if report:
        print(outcome.report)
    rows = outcome.report.rows
    size = len(outcome.program.buffer)
    delegation = outcome.delegation
    summary = {
        "quantized": f"{sum(row.quantized for row in rows)} of {len(rows)} operators",
        "calibrated on": f"{outcome.calibrated} batch(es), {outcome.held_out} more held out",
        "file size": f"float {_megabytes(outcome.float_size)}, int8 {_megabytes(size)}, "
        f"{outcome.float_size / size:.2f}x smaller",
        "SQNR against float": _decibels(outcome.sqnr),
        "runs on XNNPACK": f"{delegation.delegated} of "
        f"{delegation.delegated + delegation.left} operators",
        "portable": ", ".join(f"{count} {name}" for name, count in delegation.portable) or "none",
        "written": str(out),
    }
    table = Table(title=f"{model.name} for {backend}", show_header=False, title_justify="left")
    for name, value in summary.items():
        table.add_row(name, value)
    _console().print(table)
    for name in delegation.quantized_left:
        print(f"pt2q: warning: {name} is quantized but XNNPACK does not run it", file=sys.stderr)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The folder for the two .pte files.")] = Path(
        "pt2q-demo"
    ),
) -> None:
    """Quantize a network for handwritten digits and compare it with float, in the runtime."""
    from pt2q.demo.job import run_demo, table

    result = run_demo(out, _track)
    _console().print(table(result))


def _console() -> Console:
    """Rich cuts cells at 80 columns when the output is no terminal; paths have to stay whole."""
    return Console() if sys.stdout.isatty() else Console(width=120)


def _track(items: Sequence[T], title: str) -> Iterable[T]:
    console = Console(stderr=True)
    return track(items, title, console=console, transient=True, disable=not console.is_terminal)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB"


def _decibels(value: float) -> str:
    return "no floating-point output" if math.isnan(value) else f"{value:.1f} dB, held-out data"
