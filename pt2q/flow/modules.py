"""What preparing and converting do to modules alike."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from pt2q.ir.control_flow import named_graph_modules
from pt2q.ir.module import QuantGraphModule


@contextmanager
def paused_collection() -> Iterator[None]:
    """Within it, Python's cyclic garbage collector does not run.

    A graph is many small objects that all stay: each full collection walks all of them and frees
    nothing, which is a third of the time of a large model.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def own_modules(model: QuantGraphModule) -> list[tuple[str, QuantGraphModule]]:
    """A module ("") and those that its control flow runs, by path, which keep records."""
    return [(p, m) for p, m in named_graph_modules(model) if isinstance(m, QuantGraphModule)]
