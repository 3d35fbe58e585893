"""Quantize a program, and compare it with float operator by operator."""

from __future__ import annotations

from torch.export import ExportedProgram

from pt2q.algorithms import Improvement
from pt2q.app.conversion import Track, calibrate_and_convert
from pt2q.app.data.holding_out import Data
from pt2q.app.figures import tried
from pt2q.app.recipe import Recipe
from pt2q.debug import Comparison, RuntimeComparison, compare, compare_in_runtime
from pt2q.deploy.backend import Backend, Example
from pt2q.deploy.registry import BACKENDS
from pt2q.deploy.signature import dynamic_shapes, signature_of
from pt2q.errors import ComparisonError


def run_comparison(
    program: ExportedProgram,
    data: Data,
    recipe: Recipe,
    track: Track,
    in_runtime: bool = False,
) -> Comparison | RuntimeComparison:
    """Quantize an exported program and say, operator by operator, where it departs from float.

    Args:
        program: the float model.
        data: to calibrate on, and to compare on.
        recipe: for which backend, and how.
        track: wraps a loop over batches to show its progress under a title.
        in_runtime: compare what the runtime computes, not what the converted model does.

    Raises:
        ComparisonError: the values inside the runtime cannot be had.
    """
    backend = BACKENDS[recipe.backend]
    if in_runtime and backend.inner_values is None:
        raise ComparisonError(_no_values(backend))
    improvement = Improvement(recipe.algorithms, recipe.effort, recipe.seed)
    converted = calibrate_and_convert(
        program, recipe.quantizer(), data.calibration, track, improvement=improvement
    )
    module = program.module(check_guards=False)
    names = [node.name for node in module.graph.nodes if node.op == "placeholder"]
    signature = signature_of(program)
    held_out = tried(program, track(data.held_out, "comparing"))
    inputs = (dict(zip(names, signature.leaves(batch), strict=True)) for batch in held_out)
    if in_runtime and backend.inner_values is not None:
        example = Example(signature, data.held_out[0], dynamic_shapes(program, signature))
        values = backend.inner_values(converted, example)
        return compare_in_runtime(program, values, inputs)
    return compare(program, converted, inputs)


def _no_values(backend: Backend) -> str:
    have = ", ".join(name for name in BACKENDS if BACKENDS[name].inner_values is not None)
    return f"--in-runtime: {backend.runtime} shows no values inside; those of {have} can be had"
