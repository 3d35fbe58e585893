"""What a pass is, and the runner that checks it.

A pass is a frozen dataclass whose fields are its options. Called with a `QuantGraphModule` it
changes the graph in place and says whether it did.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from torch.fx import GraphModule

from pt2q.errors import GraphLawError
from pt2q.ir.control_flow import graph_modules
from pt2q.ir.graph import dump
from pt2q.ir.module import QuantGraphModule
from pt2q.ir.torch_private import disable_current_modes
from pt2q.ir.verify import lasting_laws, verify

_verify: ContextVar[bool] = ContextVar("verify", default=False)


class Pass(Protocol):
    """A step of a pipeline.

    A pass with an attribute ``whole_model`` that is true is given the outermost module alone and
    goes into control flow itself; others are called once for each graph.
    """

    def __call__(self, model: QuantGraphModule) -> bool:
        """Change the model in place.

        Args:
            model: the module to work on.

        Returns:
            Whether anything was changed.
        """
        ...


@contextmanager
def verified_passes() -> Iterator[None]:
    """Within it, every pass is followed by checks that cost time: meant for tests.

    The graph must lint, the laws that hold at any time must hold (`pt2q.verify`), and a pass that
    says "not modified" must not have modified.
    """
    token = _verify.set(True)
    try:
        yield
    finally:
        _verify.reset(token)


def run_passes(model: QuantGraphModule, passes: Iterable[Pass]) -> QuantGraphModule:
    """Run a pipeline in order, and bring code up to date where a pass changed the graph.

    Args:
        model: changed in place.
        passes: the pipeline.

    Returns:
        The same module.

    Raises:
        GraphLawError: under `verified_passes`, a pass broke a law.
    """
    modules = list(graph_modules(model))
    for step in passes:
        # A pass sees one graph; what control flow runs inside has graphs of its own.
        whole = getattr(step, "whole_model", False)
        changed = [m for m in (modules[:1] if whole else modules) if _run(m, step)]
        for module in modules if whole and changed else changed:
            module.recompile()
    return model


def _run(model: GraphModule, step: Pass) -> bool:
    assert isinstance(model, QuantGraphModule)
    return _run_verified(model, step) if _verify.get() else step(model)


def _run_verified(model: QuantGraphModule, step: Pass) -> bool:
    before = dump(model)
    modified = step(model)
    if not modified and dump(model) != before:
        raise GraphLawError(f"{step} says it changed nothing, but the graph differs")
    try:
        model.graph.lint()
    except Exception as error:
        raise GraphLawError(f"{step} left a graph that does not lint: {error}") from error
    with disable_current_modes():  # looking is not part of what a test may be measuring
        report = verify(model, laws=lasting_laws())
    if not report.ok:
        raise GraphLawError(f"{step} broke a law; {report}")
    return modified
