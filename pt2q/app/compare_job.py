"""Quantize a program, and compare it with float operator by operator."""

from __future__ import annotations

from collections.abc import Sequence

from torch.export import ExportedProgram

from pt2q.algorithms import Improvement
from pt2q.app.conversion import Track, calibrate_and_convert, split_off
from pt2q.app.recipe import Recipe
from pt2q.debug import Comparison, compare
from pt2q.deploy.signature import Batch, signature_of


def run_comparison(
    program: ExportedProgram, batches: Sequence[Batch], recipe: Recipe, track: Track
) -> Comparison:
    """Quantize an exported program and say, operator by operator, where it departs from float.

    Args:
        program: the float model.
        batches: calibration data; the last tenth (at least one batch) is compared on.
        recipe: for which backend, and how.
        track: wraps a loop over batches to show its progress under a title.
    """
    calibration, held_out = split_off(batches, recipe.limit)
    improvement = Improvement(recipe.algorithms, recipe.effort, recipe.seed)
    converted = calibrate_and_convert(
        program, recipe.quantizer(), calibration, track, improvement=improvement
    )
    module = program.module(check_guards=False)
    names = [node.name for node in module.graph.nodes if node.op == "placeholder"]
    signature = signature_of(program)
    inputs = (
        dict(zip(names, signature.leaves(batch), strict=True))
        for batch in track(held_out, "comparing")
    )
    return compare(program, converted, inputs)
