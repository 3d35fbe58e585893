"""Quantize a program, write it for its backend, and compare what runs there with float."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from torch import Tensor
from torch.export import ExportedProgram

from pt2q.algorithms import Improvement, apply_improvement, report_of
from pt2q.algorithms import Report as Improved
from pt2q.algorithms.task import Progress
from pt2q.app.conversion import Track, calibrate_and_convert, calibrated, calls_of, untracked
from pt2q.app.data.checks import Look
from pt2q.app.data.holding_out import Data
from pt2q.app.figures import Figures, References
from pt2q.app.holdings import Holdings, holdings
from pt2q.app.metrics import Measured, Metric, Recorded, measure
from pt2q.app.recipe import Recipe
from pt2q.app.recipe.writing import recipe_text
from pt2q.deploy.backend import Deployed, Example
from pt2q.deploy.registry import BACKENDS
from pt2q.deploy.signature import dynamic_shapes, signature_of
from pt2q.files import replacing
from pt2q.flow import DataDigest, provenance_of
from pt2q.ir.module import QuantGraphModule
from pt2q.ir.storage import is_low
from pt2q.quantizers import Report


@dataclass(frozen=True)
class Outcome:
    """What came out.

    Args:
        deployed: the quantized model, written.
        report: the quantizer's account, operator by operator.
        float_size: bytes of the tensors of the float model.
        data: what was calibrated on, and compared on.
        figures: of the file, against the float program and the converted model.
        improved: what algorithms did, layer by layer.
        holdings: what the bytes of the file hold.
        metric: what it says, where there is one.
    """

    deployed: Deployed
    report: Report
    float_size: int
    data: Data
    figures: Figures
    improved: Improved
    holdings: Holdings
    metric: Measured | None = None


def run_job(
    program: ExportedProgram,
    data: Data,
    recipe: Recipe,
    track: Track,
    out: Path,
    show: Callable[[Report], None] | None = None,
    progress: Progress | None = None,
    resume: Path | None = None,
    metric: Metric | None = None,
) -> Outcome:
    """Quantize an exported program, write it for its backend and compare it with float.

    Args:
        program: the float model.
        data: to calibrate on, and to compare on.
        recipe: for which backend, and how.
        track: wraps a loop over batches to show its progress under a title.
        out: the file to write; an old one stays where the new one is refused.
        show: is given the quantizer's report before anything can fail that it may explain.
        progress: is told where algorithms stand.
        resume: a folder that keeps how far this came.
        metric: judges the results, too.

    Raises:
        RequirementError, DisagreementError: the result is not what it has to be.
    """
    backend, quantizer = BACKENDS[recipe.backend], recipe.quantizer()
    signature = signature_of(program)
    # Dynamic activations have no ranges that data could miss.
    look = Look() if recipe.default.mode == "static" else None
    improvement = Improvement(
        recipe.algorithms, recipe.effort, recipe.seed, is_low(), progress, resume=resume
    )
    held_out = data.held_out.at_hand()
    converted = calibrate_and_convert(
        program, quantizer, data.calibration, track, show, improvement, resume, look
    )
    if look is not None:
        look.warn(signature, held_out)
    batches = chain(data.calibration, held_out) if backend.bounds_sizes else ()
    shapes = dynamic_shapes(program, signature, batches)
    example = Example(signature, data.calibration[0], shapes)
    recipe.require.check_report(quantizer.report())
    shown_batches = track(held_out, "running in PyTorch")
    wanted = References.of(program, converted, signature, shown_batches)
    _say_so(converted, recipe, data, wanted.converted)
    with replacing(out) as draft:
        deployed = backend.deploy(converted, example, draft)
        ran = Recorded(deployed.run, program, keeps=metric is not None)
        figures = wanted.figures(ran, track(held_out, "comparing"))
        recipe.require.check_figures(figures, deployed.runtime or backend.runtime)
        judged = measure(metric, program, converted, held_out, ran.results)
    done = report_of(converted)
    held = holdings(out, deployed.size, converted)
    return Outcome(
        deployed, quantizer.report(), _float_size(program), data, figures, done, held, judged
    )


def _say_so(converted: QuantGraphModule, recipe: Recipe, data: Data, decibels: float) -> None:
    """Have the files that are made of a model say where it comes from."""
    before = provenance_of(converted)
    known = replace(
        before,
        data=before.data or DataDigest.of(data.calibration),
        recipe=recipe_text(recipe),
        sqnr=decibels,
        held_out=len(data.held_out),
    )
    converted.record.put(known)


def take_part(
    program: ExportedProgram, data: Data, recipe: Recipe, resume: Path | None = None
) -> None:
    """Do this process's share of the work, for another process that does `run_job`.

    Args:
        program: the float model.
        data: all of it.
        recipe: for which backend, and how.
        resume: a folder that keeps how far this came.
    """
    look = Look() if recipe.default.mode == "static" else None
    found = calibrated(
        program, recipe.quantizer(), data.calibration, untracked, resume=resume, look=look
    )
    improvement = Improvement(
        recipe.algorithms, recipe.effort, recipe.seed, is_low(), resume=resume
    )
    apply_improvement(found, calls_of(program, data.calibration), improvement)


def _float_size(program: ExportedProgram) -> int:
    """Bytes of the tensors of the float model."""
    tensors = [*program.state_dict.values(), *program.constants.values()]
    return sum(t.nbytes for t in tensors if isinstance(t, Tensor))
