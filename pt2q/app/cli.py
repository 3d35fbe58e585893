"""The command line: `pt2q quantize`, `pt2q compare`, `pt2q recipe init` and `pt2q demo`.

Bad input ends in one line on standard error: exit code 2 for the command line itself, 1 for
files and models.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from typer.exceptions import Abort, TyperException

from pt2q.app.recipe import Recipe
from pt2q.app.targets import BACKENDS, Backend
from pt2q.errors import Pt2qError, Pt2qWarning

if TYPE_CHECKING:
    from pt2q.quantizers import Report

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
    if message:  # a group called without a command has shown its help
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


@app.command(
    help="Quantize an exported model and write it for a backend.\n\n"
    # Paragraphs in one line each: typer keeps line breaks.
    "Arrays of a .npz are taken by input name or else in order; a .pt holds a tensor, a tuple, a "
    "dict by input name, or a list of these. The first axis is split into batches of the exported "
    "size. The last tenth is held out to compare with float."
)
def quantize(
    model: Annotated[Path, typer.Argument(help="A float model, as torch.export.save wrote it.")],
    calibration: Annotated[
        Path, typer.Option(help="Inputs of the model: a .npz or .pt file, or a folder of them.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")],
    backend: Annotated[
        str | None,
        typer.Option(
            help=f"What runs the result: {', '.join(BACKENDS)}; if not given the recipe's, or "
            f"else {next(iter(BACKENDS))}."
        ),
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="A TOML file that says how; see: pt2q recipe init")
    ] = None,
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
    """Quantize an exported model and write it for a backend."""
    from pt2q.app.calibration import read_batches, read_program, signature_of
    from pt2q.app.quantize_job import run_job
    from pt2q.files import ensure_writable

    chosen = _recipe(backend, recipe).changed(
        mode="dynamic" if dynamic else None, weight_scales="tensor" if per_tensor else None
    )
    chosen = chosen if limit is None else replace(chosen, limit=limit)
    chosen.quantizer()
    ensure_writable(out)
    _check_suffix(out, BACKENDS[chosen.backend])
    _check_apart(out, model, calibration, recipe)
    program = read_program(model)
    batches = read_batches(calibration, signature_of(program))
    show = _print_report if report else None
    outcome = run_job(program, batches, chosen, _track, out, show)

    rows = outcome.report.rows
    size = outcome.deployed.size
    summary = {
        "quantized": f"{sum(row.quantized for row in rows)} of {len(rows)} operators",
        "calibrated on": f"{outcome.calibrated} batch(es), {outcome.held_out} more held out",
        "file size": _sizes(outcome.float_size, size, BACKENDS[chosen.backend]),
        "SQNR against float": _decibels(outcome.sqnr),
        **dict(outcome.deployed.rows),
        "written": str(out),
    }
    table = Table(
        title=f"{model.name} for {chosen.backend}", show_header=False, title_justify="left"
    )
    for name, value in summary.items():
        table.add_row(name, value)
    _console().print(table)
    for line in outcome.deployed.warnings:
        print(f"pt2q: warning: {line}", file=sys.stderr)


@app.command(
    help="Say, operator by operator, where a quantized model departs from float.\n\n"
    "It is quantized as by 'pt2q quantize', which see for the files; nothing is lowered. Local: "
    "what an operator adds by itself. Total: with all that comes before it."
)
def compare(
    model: Annotated[Path, typer.Argument(help="A float model, as torch.export.save wrote it.")],
    calibration: Annotated[
        Path, typer.Option(help="Inputs of the model: a .npz or .pt file, or a folder of them.")
    ],
    backend: Annotated[
        str | None, typer.Option(help=f"For what: {', '.join(BACKENDS)}; else the recipe's.")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="A TOML file that says how; see: pt2q recipe init")
    ] = None,
    worst: Annotated[
        int | None, typer.Option(min=1, help="Print the operators with the largest local errors.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the whole report here, too.")] = None,
) -> None:
    """Say, operator by operator, where a quantized model departs from float."""
    from pt2q.app.calibration import read_batches, read_program, signature_of
    from pt2q.app.quantize_job import run_comparison
    from pt2q.files import ensure_writable, write_bytes

    chosen = _recipe(backend, recipe)
    chosen.quantizer()
    if json is not None:
        ensure_writable(json)
    program = read_program(model)
    batches = read_batches(calibration, signature_of(program))
    report = run_comparison(program, batches, chosen, _track)
    print(report if worst is None else report.worst(worst))
    if json is not None:
        write_bytes(json, f"{report.to_json()}\n".encode())


def _recipe(backend: str | None, path: Path | None) -> Recipe:
    from pt2q.app.recipe import Recipe, load
    from pt2q.app.targets import backend_named
    from pt2q.errors import RecipeError

    if backend is not None:
        backend_named(backend)
    if path is None:
        return Recipe() if backend is None else Recipe(backend)
    found = load(path)
    if backend not in (None, found.backend):
        raise RecipeError(
            f"{path} is for {found.backend}, not for {backend}: leave --backend out, or write a "
            f"recipe for it with: pt2q recipe init --backend {backend}"
        )
    return found


def _check_suffix(out: Path, backend: Backend) -> None:
    from pt2q.errors import DataError

    if out.suffix != backend.suffix:
        raise DataError(
            f"{backend.name} reads {backend.suffix} files: write {out.with_suffix(backend.suffix)}"
            f", not {out}"
        )


def _check_apart(out: Path, *read: Path | None) -> None:
    """A package has the suffix of the exported program that it is made from."""
    from pt2q.errors import DataError

    if any(path is not None and path.resolve() == out.resolve() for path in read):
        raise DataError(f"{out} is read by this command: write to another file")


recipes = typer.Typer(no_args_is_help=True, help="Write down how to quantize, as a file.")
app.add_typer(recipes, name="recipe")


@recipes.command()
def init(
    backend: Annotated[
        str, typer.Option(help=f"What runs the result: {', '.join(BACKENDS)}")
    ] = "xnnpack",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The file to write; printed if not given, or if -."),
    ] = None,
) -> None:
    """Write a commented recipe whose settings are the defaults of a backend."""
    from pt2q.app.recipe import template
    from pt2q.errors import RecipeError
    from pt2q.files import write_bytes

    text = template(backend)
    if out is None or str(out) == "-":
        print(text, end="")
        return
    if out.is_file():
        raise RecipeError(f"{out} is there already; write to another name, or remove it first")
    write_bytes(out, text.encode())
    print(f"written: {out}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The folder for the two .pte files.")] = Path(
        "pt2q-demo"
    ),
) -> None:
    """Quantize a network for handwritten digits and compare it with float, in the runtime."""
    from pt2q.demo.run import run_demo, table

    result = run_demo(out, _track)
    _console().print(table(result))


def _console() -> Console:
    """Rich cuts cells at 80 columns when the output is no terminal; paths have to stay whole."""
    return Console() if sys.stdout.isatty() else Console(width=120)


def _track(items: Sequence[T], title: str) -> Iterable[T]:
    console = Console(stderr=True)
    return track(items, title, console=console, transient=True, disable=not console.is_terminal)


def _print_report(report: Report) -> None:
    """The table broken to the terminal; whole where it goes into a file."""
    terminal = sys.stdout.isatty()
    print(report.text(_console().width) if terminal else report)
    print()


def _sizes(float_size: int, size: int, backend: Backend) -> str:
    if not backend.deploys_float:
        return f"{_megabytes(size)}, with code; float tensors {_megabytes(float_size)}"
    ratio = float_size / size
    change = f"{ratio:.2f}x smaller" if ratio >= 1 else f"{1 / ratio:.2f}x larger"
    return f"float {_megabytes(float_size)}, int8 {_megabytes(size)}, {change}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB" if size >= 1e5 else f"{size / 1e6:.4f} MB"


def _decibels(value: float) -> str:
    if math.isnan(value):
        return "no floating-point output"
    return "equal, held-out data" if math.isinf(value) else f"{value:.1f} dB, held-out data"
