"""A program is not taken apart once more when nothing is left to take apart.

ExecuTorch takes a program apart into core operators three times: once for what writes in place,
once without the operators that a delegate wants whole, and once with those among them that it does
not want after all. Each runs the program operator by operator under several layers of torch. Mostly
the delegate wants all of them, and the last run has no operator left that its table takes apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

from torch.export import ExportedProgram
from torch.fx import GraphModule

from pt2q.replaced import replaced


@contextmanager
def taken_apart_where_needed() -> Iterator[None]:
    """Take no program apart that was taken apart and has no operator of the table any more.

    Lowerings take turns: each puts back what it found.
    """
    run = _where_needed(ExportedProgram.run_decompositions)
    with replaced(ExportedProgram, run_decompositions=run):
        yield


def _where_needed(run: Callable[..., ExportedProgram]) -> Callable[..., ExportedProgram]:
    done: WeakSet[ExportedProgram] = WeakSet()

    def run_where_needed(self: ExportedProgram, table: Any = None, **more: Any) -> ExportedProgram:
        if self in done and table is not None and not _has(self, table):
            return self
        result = run(self, table, **more)
        done.add(result)
        return result

    return run_where_needed


def _has(program: ExportedProgram, table: Any) -> bool:
    """Whether a program has an operator that a table takes apart."""
    graphs = (m.graph for m in program.graph_module.modules() if isinstance(m, GraphModule))
    return any(node.target in table for graph in graphs for node in graph.nodes)
