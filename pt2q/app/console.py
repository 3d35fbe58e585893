"""What the command line prints: tables, progress, warnings."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import track as rich_track

from pt2q.errors import Pt2qWarning

T = TypeVar("T")


def console() -> Console:
    """Standard output; 80 columns where it is no terminal."""
    return Console()


def track(items: Sequence[T], title: str) -> Iterable[T]:
    """Show the progress of a loop under a title, on a terminal alone."""
    shown = Console(stderr=True)
    return rich_track(items, title, console=shown, transient=True, disable=not shown.is_terminal)


def complain(message: object, kind: str = "") -> None:
    """One line on standard error.

    Args:
        message: broken into lines or not.
        kind: what it is, such as ``warning``; "" for an error.
    """
    words = ("pt2q:", f"{kind}:" if kind else "", *str(message).split())
    print(" ".join(filter(None, words)), file=sys.stderr)


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Our own warnings as one line each, without source lines; third parties' not at all."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", Pt2qWarning)
        warnings.showwarning = lambda message, *_, **__: complain(message, "warning")
        yield
