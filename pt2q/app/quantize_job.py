"""Quantize a program, write it for its backend, and compare what runs there with float."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from pt2q.algorithms import Improvement, report_of
from pt2q.algorithms import Report as Improved
from pt2q.algorithms.layerwise import Progress
from pt2q.app.conversion import Track, calibrate_and_convert, calibrated, split_off
from pt2q.app.recipe import Recipe
from pt2q.deploy.backend import Backend, Deployed, Example, Run
from pt2q.deploy.registry import BACKENDS
from pt2q.deploy.signature import Batch, dynamic_shapes, signature_of
from pt2q.ir.torch_private import pytree
from pt2q.numerics.sqnr import sqnr
from pt2q.quantizers import Report


@dataclass(frozen=True)
class Outcome:
    """What came out.

    Args:
        deployed: the quantized model, written.
        report: the quantizer's account, operator by operator.
        float_size: bytes of the float model, written the same way, or of its tensors.
        calibrated: number of batches that were calibrated on.
        held_out: number of batches that were kept for the comparison.
        sqnr: decibels of the quantized model's output against the float model's.
        improved: what algorithms did, layer by layer.
    """

    deployed: Deployed
    report: Report
    float_size: int
    calibrated: int
    held_out: int
    sqnr: float
    improved: Improved


def run_job(
    program: ExportedProgram,
    batches: Sequence[Batch],
    recipe: Recipe,
    track: Track,
    out: Path,
    show: Callable[[Report], None] | None = None,
    progress: Progress | None = None,
    resume: Path | None = None,
) -> Outcome:
    """Quantize an exported program, write it for its backend and compare it with float.

    Args:
        program: the float model.
        batches: calibration data; the last tenth (at least one batch) is held out.
        recipe: for which backend, and how.
        track: wraps a loop over batches to show its progress under a title.
        out: the file to write.
        show: is given the quantizer's report before anything can fail that it may explain.
        progress: is told where algorithms stand.
        resume: a folder that keeps how far calibration came.
    """
    backend, quantizer = BACKENDS[recipe.backend], recipe.quantizer()
    calibration, held_out = split_off(batches, recipe.limit)
    improvement = Improvement(recipe.algorithms, recipe.effort, recipe.seed, progress=progress)
    converted = calibrate_and_convert(
        program, quantizer, calibration, track, show, improvement, resume
    )
    signature = signature_of(program)
    example = Example(signature, calibration[0], dynamic_shapes(program, signature))
    deployed = backend.deploy(converted, example, out)
    with tempfile.TemporaryDirectory() as folder:
        reference, float_size = _float(program, backend, example, Path(folder))
        decibels = _compare(reference, deployed.run, track(held_out, "comparing"))
    counts = len(calibration), len(held_out)
    done = report_of(converted)
    return Outcome(deployed, quantizer.report(), float_size, *counts, decibels, done)


def take_part(
    program: ExportedProgram, batches: Sequence[Batch], recipe: Recipe, resume: Path | None = None
) -> None:
    """Calibrate on this process's share, for another process that does `run_job`.

    Args:
        program: the float model.
        batches: calibration data, all of it.
        recipe: for which backend, and how.
        resume: a folder that keeps how far calibration came.
    """
    calibration, _ = split_off(batches, recipe.limit)
    calibrated(program, recipe.quantizer(), calibration, lambda items, _: items, resume=resume)


def _float(
    program: ExportedProgram, backend: Backend, example: Example, folder: Path
) -> tuple[Run, int]:
    """What runs the float model, and its size."""
    if backend.deploys_float:
        deployed = backend.deploy(program, example, folder / f"float{backend.suffix}")
        return deployed.run, deployed.size
    module = program.module(check_guards=False)

    def run(batch: Batch) -> Sequence[Any]:
        args, kwargs = example.signature.call(batch)
        with torch.no_grad():
            return list(pytree.tree_leaves(module(*args, **kwargs)))

    tensors = [*program.state_dict.values(), *program.constants.values()]
    return run, sum(t.nbytes for t in tensors if isinstance(t, Tensor))


def _compare(reference: Run, other: Run, batches: Iterable[Batch]) -> float:
    """SQNR over all floating-point outputs of all batches."""
    pairs = [
        (a.flatten(), b.flatten())
        for batch in batches
        for a, b in zip(reference(batch), other(batch), strict=True)
        if isinstance(a, Tensor) and a.is_floating_point()
    ]
    if not pairs:
        return float("nan")
    references, others = zip(*pairs, strict=True)
    return float(sqnr(torch.cat(references), torch.cat(others)))
