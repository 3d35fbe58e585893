"""Loading packages while the garbage collector rests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from importlib import import_module

from pt2q.collection import paused_collection
from pt2q.library_output import quiet_python

OWN_PROCESS: ContextVar[bool] = ContextVar("pt2q_own_process", default=False)
"""Whether the process is the command's own, and not one that calls it."""


@contextmanager
def loading() -> Iterator[None]:
    """Within it, nothing is looked through for garbage; what is there at its end never is again.

    Torch and a runtime make a million objects that live as long as the process: looking through
    them again and again is a tenth of a command's time. In a process that only calls the command
    the collector is left alone.
    """
    with paused_collection(for_good=True) if OWN_PROCESS.get() else nullcontext():
        yield


def load(names: Iterable[str]) -> None:
    """Load modules early; of one that is not installed, who needs it says so.

    Args:
        names: of modules.
    """
    for name in names:
        with suppress(ImportError), quiet_python():
            import_module(name)
