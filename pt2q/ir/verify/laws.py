"""The table of the laws, which rooms above extend, and the check of them.

A law of graphs is called with the module of each graph, those inside control flow included; a law
of runs with the outermost module and example inputs. Either yields what breaks it, by node.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

from torch.fx import GraphModule

from pt2q.ir.control_flow import named_graph_modules
from pt2q.ir.verify.report import VerifyReport, Violation

Found = Iterator[tuple[str, str]]
"""The node, parameter or submodule at which a law is broken, and how."""


@dataclass(frozen=True)
class Law:
    """A row of the table.

    Args:
        name: how `verify` is asked for it.
        check: yields what breaks it; its docstring states the law.
        needs_inputs: whether it runs the model.
        always: whether it holds after every pass, not only at the end of a pipeline.
    """

    name: str
    check: Callable[..., Found]
    needs_inputs: bool = False
    always: bool = False


LAWS: dict[str, Law] = {}
"""By name, in the order in which they are checked."""

Check = Callable[..., Found]


def law(name: str, *, needs_inputs: bool = False, always: bool = False) -> Callable[[Check], Check]:
    """Enter a function into the table.

    Args:
        name, needs_inputs, always: see `Law`.

    Raises:
        ValueError: there is a law of that name.
    """

    def enter(check: Check) -> Check:
        if name in LAWS:
            raise ValueError(f"there is a law {name!r} already; choose another name")
        LAWS[name] = Law(name, check, needs_inputs, always)
        return check

    return enter


def lasting_laws() -> tuple[str, ...]:
    """Those that hold after every pass."""
    return tuple(law.name for law in LAWS.values() if law.always)


def verify(
    model: GraphModule,
    example_inputs: tuple[Any, ...] | None = None,
    *,
    laws: Collection[str] | None = None,
) -> VerifyReport:
    """Check the laws of the graph, on the model and on the bodies of its control flow.

    Args:
        model: prepared, converted or float; it is not changed.
        example_inputs: with them the recorded values are compared with real ones, and a converted
            model is exported anew.
        laws: names of the laws to check; None means all that apply.

    Returns:
        The report. ``verify(model).raise_if_broken()`` raises on the first broken law.

    Raises:
        ValueError: there is no law of that name.
    """
    chosen = _chosen(laws, with_inputs=example_inputs is not None)
    on_graphs = [law for law in chosen if not law.needs_inputs]
    violations = []
    for path, module in named_graph_modules(model):
        for law in on_graphs:
            found = law.check(module)
            violations += [Violation(law.name, path + node, text) for node, text in found]
    for law in chosen:
        if law.needs_inputs:
            found = law.check(model, example_inputs)
            violations += [Violation(law.name, node, text) for node, text in found]
    return VerifyReport(tuple(violations), tuple(law.name for law in chosen))


def _chosen(laws: Collection[str] | None, *, with_inputs: bool) -> list[Law]:
    unknown = sorted(set(laws or ()) - LAWS.keys())
    if unknown:
        raise ValueError(f"there is no law {unknown[0]!r}; the laws are {sorted(LAWS)}")
    return [
        law
        for law in LAWS.values()
        if (laws is None or law.name in laws) and (with_inputs or not law.needs_inputs)
    ]
