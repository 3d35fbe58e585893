"""Several programs beside their float programs: a call of each, in their order, on shared state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch.fx import GraphModule

from pt2q.app.data.failing import failing
from pt2q.app.figures import Figures, References, in_pytorch, own
from pt2q.app.programs.data import Calls, Programs
from pt2q.deploy.agreement import with_own_state
from pt2q.deploy.backend import Run
from pt2q.deploy.signature import signature_of
from pt2q.ir.shared_tensors import unite_tensors

Results = dict[str, list[Sequence[Any]]]
"""What each program gave, batch by batch, flat."""


def references_of(
    programs: Programs, converted: Mapping[str, GraphModule], batches: Sequence[Calls]
) -> dict[str, References]:
    """Run float and converted programs on the same batches.

    Args:
        programs: the float programs.
        converted: what they were converted to. The state of both stays as it is.
        batches: held out.

    Returns:
        What a file is compared with, by the program.
    """
    floating = {name: program.module(check_guards=False) for name, program in programs.items()}
    exact, rounded = (
        results(runs_of({name: models[name] for name in batches[0]}, programs), batches)
        for models in (floating, converted)
    )
    return {
        name: References.between(zip(values, rounded[name], strict=True))
        for name, values in exact.items()
    }


def runs_of(models: Mapping[str, GraphModule], programs: Programs) -> dict[str, Run]:
    """What runs models in PyTorch; what one leaves in a buffer the others find there.

    Args:
        models: float or converted, by name.
        programs: the float programs, which say how they are called.
    """
    copied = {name: with_own_state(model) for name, model in models.items()}
    unite_tensors(copied, made=True)
    return {name: in_pytorch(model, signature_of(programs[name])) for name, model in copied.items()}


def results(runs: Mapping[str, Run], batches: Iterable[Calls]) -> Results:
    """Run batches, one after the other, and of each the programs in their order.

    Args:
        runs: by program.
        batches: held out.
    """
    found: Results = {}
    for number, calls in enumerate(batches, 1):
        for name, batch in calls.items():
            with failing(f"held-out data of {name}", number):
                values = [_kept(value) for value in runs[name](own(batch))]
            found.setdefault(name, []).append(values)
    return found


def figures_of(references: Mapping[str, References], ran: Results) -> dict[str, Figures]:
    """What was measured, by the program.

    Args:
        references: see `references_of`.
        ran: what the methods of the file gave on the same batches.
    """
    found = {}
    for name, wanted in references.items():
        values = iter(ran[name])
        batches: list[tuple[()]] = [()] * len(ran[name])
        found[name] = wanted.figures(lambda _, values=values: next(values), batches)  # type: ignore[misc]
    return found


def _kept(value: Any) -> Any:
    """A result that the next call leaves as it is: it may be a view of what is remembered."""
    return value.clone() if hasattr(value, "clone") else value
