"""What the command line prints: tables, progress, warnings."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress
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


@contextmanager
def steps(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """Show how far a work of many steps is, with the time left, on a terminal alone.

    Args:
        title: what is done.

    Yields:
        A function to be told how many steps are done, of how many, and which is next.
    """
    shown = Console(stderr=True)
    with Progress(console=shown, transient=True, disable=not shown.is_terminal) as bar:
        task = bar.add_task(title, total=None)

        def tell(done: int, total: int, name: str) -> None:
            bar.update(task, completed=done, total=total, description=f"{title} {name}"[:40])

        yield tell


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
    """Our own warnings as one line each, once, without source lines; third parties' not at all."""
    said: set[str] = set()

    def say(message: Warning | str, *_: object, **__: object) -> None:
        if str(message) not in said:
            said.add(str(message))
            complain(message, "warning")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", Pt2qWarning)
        warnings.showwarning = say
        yield
