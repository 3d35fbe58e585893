"""What a function of the user's says of results: of float, of the converted model, of the file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule

from pt2q.app.figures import own
from pt2q.app.function_file import read_function
from pt2q.deploy.agreement import with_own_state
from pt2q.deploy.backend import Run
from pt2q.deploy.signature import Batch, signature_of
from pt2q.errors import DataError, Pt2qError
from pt2q.ir.torch_private import pytree
from pt2q.library_output import first_line

Metric = Callable[[Sequence[Any], Sequence[int]], float]


def read_metric(given: str | None, numbers: Sequence[int]) -> Metric | None:
    """A metric that is told where batches stand in the data.

    Args:
        given: ``FILE.py:FUNCTION``; None gives None.
        numbers: of the batches that are measured on.

    Raises:
        DataError: there is none.
    """
    if given is None:
        return None
    function = read_function("metric", given)

    def metric(results: Sequence[Any], positions: Sequence[int]) -> float:
        try:
            return float(function(results, [numbers[position] for position in positions]))
        except Pt2qError:
            raise
        except (Exception, SystemExit) as error:  # it is the user's code
            raise DataError(f"metric {given}: it fails: {first_line(error)}") from error

    return metric


@dataclass(frozen=True)
class Measured:
    """What a metric says.

    Args:
        floating: of the float model.
        quantized: of the converted model in PyTorch; None where there is none.
        file: of what runs from the file; None where there is none.
    """

    floating: float
    quantized: float | None
    file: float | None = None

    def __str__(self) -> str:
        said = {"float": self.floating, "quantized": self.quantized, "file": self.file}
        return ", ".join(f"{name} {x:.4g}" for name, x in said.items() if x is not None)

    def to_dict(self) -> dict[str, float | None]:
        """For JSON."""
        return {"float": self.floating, "quantized": self.quantized, "file": self.file}


@dataclass(frozen=True)
class Recorded:
    """Runs a file, and keeps its results in the structure of the model's.

    Args:
        run: runs it.
        program: the float model.
        keeps: whether they are kept.
        results: what came out, batch by batch.
    """

    run: Run
    program: ExportedProgram
    keeps: bool = True
    results: list[Any] = field(default_factory=list)

    def __call__(self, batch: Batch) -> Sequence[Any]:
        """Run one batch."""
        found = list(self.run(batch))
        if not self.keeps:
            return found
        spec = self.program.call_spec.out_spec
        whole = spec is not None and spec.num_leaves == len(found)
        self.results.append(pytree.tree_unflatten(found, spec) if whole else found)
        return found


def measure(
    metric: Metric | None,
    program: ExportedProgram,
    converted: GraphModule | None,
    batches: Iterable[Batch],
    file: Sequence[Any] | None = None,
) -> Measured | None:
    """Ask a metric of a float and a converted model, and of what a file gave.

    Args:
        metric: the function; None gives None.
        program: the float model.
        converted: what it was converted to, if anything. The state of both stays as it is.
        batches: to run them on.
        file: the results of a file on the same batches.
    """
    if metric is None:
        return None
    held = list(batches)
    places = range(len(held))
    floating, quantized = (
        None if module is None else metric(list(_results(module, program, held)), places)
        for module in (program.module(check_guards=False), converted)
    )
    assert floating is not None
    return Measured(floating, quantized, None if file is None else metric(file, places))


def _results(
    module: GraphModule, program: ExportedProgram, batches: Iterable[Batch]
) -> Iterator[Any]:
    signature, copied = signature_of(program), with_own_state(module)
    for batch in batches:
        args, kwargs = signature.call(own(batch))
        with torch.no_grad():
            yield copied(*args, **kwargs)
