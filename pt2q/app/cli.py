"""The command line: `pt2q quantize`, `pt2q compare`, `pt2q sensitivity` and their kin.

What goes wrong ends in one line on standard error: exit code 2 for the command line itself, 1 for
files and models, 3 for a result that is not what is required, 4 for a file that does not compute
what the converted model does, 130 and 143 for Ctrl-C and a request to end.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.exceptions import Abort, TyperException

from pt2q import __version__
from pt2q.app.commands import (
    compare,
    demo,
    doctor,
    draw,
    inspect,
    quantize,
    recipe,
    report,
    search,
    sensitivity,
)
from pt2q.app.console import complain, plain_warnings
from pt2q.app.loading import OWN_PROCESS
from pt2q.app.options import asking
from pt2q.app.signals import Terminated, ended_by_signals
from pt2q.app.trust import TRUSTED
from pt2q.errors import DisagreementError, Pt2qError, RequirementError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Quantize programs captured with torch.export.",
)
recipes = typer.Typer(no_args_is_help=True, help=recipe.HELP)

app.command(help=quantize.HELP)(asking(quantize.quantize))
app.command(help=inspect.HELP)(inspect.inspect)
app.command(help=compare.HELP)(asking(compare.compare))
app.command(help=sensitivity.HELP)(asking(sensitivity.sensitivity))
app.command(help=doctor.HELP)(asking(doctor.doctor))
app.command(help=search.HELP)(asking(search.search))
app.command(help=report.HELP)(asking(report.report))
app.command(help=draw.HELP)(asking(draw.draw))
app.command()(demo.demo)
recipes.command()(recipe.init)
app.add_typer(recipes, name="recipe")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code.

    Args:
        argv: the arguments; those of the process when None.
    """
    OWN_PROCESS.set(argv is None)
    sys.exit(_run(None if argv is None else list(argv)))


def _run(argv: list[str] | None) -> int:
    try:
        with plain_warnings(), ended_by_signals():
            code = app(args=argv, prog_name="pt2q", standalone_mode=False)
        # Typer makes an exit of Ctrl-C by itself, without a word.
        return _fail("interrupted", 130) if code == 130 else int(code or 0)
    except TyperException as error:
        return _fail(error.format_message(), 2)
    except RequirementError as error:
        return _fail(str(error), 3)
    except DisagreementError as error:
        return _fail(str(error), 4)
    except Pt2qError as error:
        return _fail(str(error), 1)
    except Terminated:
        return _fail("terminated", 143)
    except (Abort, KeyboardInterrupt):
        return _fail("interrupted", 130)


def _fail(message: str, code: int) -> int:
    if message:  # a group called without a command has shown its help
        complain(message)
    return code


def _version(wanted: bool) -> None:
    if wanted:
        print(f"pt2q {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    trust: Annotated[
        bool,
        typer.Option("--trust", help="Load model files that may run code, as you trust them."),
    ] = False,
) -> None:
    TRUSTED.set(trust)
