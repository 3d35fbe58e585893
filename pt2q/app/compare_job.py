"""Quantize a program, and compare it with float operator by operator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch.export import ExportedProgram

from pt2q.algorithms import Improvement
from pt2q.app.conversion import Track, calibrate_and_convert
from pt2q.app.data.holding_out import Data
from pt2q.app.figures import tried
from pt2q.app.metrics import Measured, Metric, measure
from pt2q.app.recipe import Recipe
from pt2q.debug import Comparison, RuntimeComparison, compare, compare_in_runtime
from pt2q.deploy.backend import Backend, Example
from pt2q.deploy.registry import BACKENDS
from pt2q.deploy.signature import Batch, dynamic_shapes, signature_of
from pt2q.errors import ComparisonError
from pt2q.ir.module import QuantGraphModule
from pt2q.ir.module.batch_call import placeholders

R = TypeVar("R")


@dataclass(frozen=True)
class Compared(Generic[R]):
    """What came out.

    Args:
        report: operator by operator.
        metric: what it says, where there is one.
    """

    report: R
    metric: Measured | None = None


def run_comparison(
    program: ExportedProgram,
    data: Data,
    recipe: Recipe,
    track: Track,
    metric: Metric | None = None,
) -> Compared[Comparison]:
    """Quantize an exported program and say, operator by operator, where it departs from float.

    Args:
        program: the float model.
        data: to calibrate on, and to compare on.
        recipe: for which backend, and how.
        track: wraps a loop over batches to show its progress under a title.
        metric: judges the results, too.
    """
    converted = _converted(program, data, recipe, track)
    judged = measure(metric, program, converted, data.held_out)
    return Compared(compare(program, converted, inputs_of(program, data.held_out, track)), judged)


def run_in_runtime(
    program: ExportedProgram,
    data: Data,
    recipe: Recipe,
    track: Track,
    metric: Metric | None = None,
) -> Compared[RuntimeComparison]:
    """Quantize and lower an exported program and compare the values inside the runtime.

    Args:
        program, data, recipe, track, metric: as for `run_comparison`.

    Raises:
        ComparisonError: the values inside the runtime cannot be had.
    """
    backend = BACKENDS[recipe.backend]
    show = backend.inner_values
    if show is None:
        raise ComparisonError(_no_values(backend))
    converted = _converted(program, data, recipe, track)
    signature = signature_of(program)
    shapes = dynamic_shapes(program, signature, data.held_out if backend.bounds_sizes else ())
    example = Example(signature, data.held_out[0], shapes)
    judged = measure(metric, program, converted, data.held_out)
    inputs = inputs_of(program, data.held_out, track)
    return Compared(compare_in_runtime(program, show(converted, example), inputs), judged)


def _converted(
    program: ExportedProgram, data: Data, recipe: Recipe, track: Track
) -> QuantGraphModule:
    improvement = Improvement(recipe.algorithms, recipe.effort, recipe.seed)
    return calibrate_and_convert(
        program, recipe.quantizer(), data.calibration, track, improvement=improvement
    )


def inputs_of(
    program: ExportedProgram, batches: Sequence[Batch], track: Track
) -> Iterator[dict[str, Any]]:
    """Batches by the names of the inputs.

    Args:
        program: the float model.
        batches: to compare on.
        track: wraps a loop over batches to show its progress under a title.
    """
    module = program.module(check_guards=False)
    names = [str(node.target) for node in placeholders(module)]
    signature = signature_of(program)
    for batch in tried(program, track(batches, "comparing")):
        yield dict(zip(names, signature.leaves(batch), strict=True))


def _no_values(backend: Backend) -> str:
    have = ", ".join(name for name in BACKENDS if BACKENDS[name].inner_values is not None)
    return f"--in-runtime: {backend.runtime} shows no values inside; those of {have} can be had"
