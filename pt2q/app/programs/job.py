"""Quantize several programs of one model, write them to one file, and compare it with float."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from torch import Tensor
from torch.export import ExportedProgram

from pt2q.algorithms import Improvement, report_of
from pt2q.algorithms import Report as Improved
from pt2q.algorithms.task import Progress
from pt2q.app.figures import Figures
from pt2q.app.holdings import Holdings, holdings
from pt2q.app.programs.comparing import figures_of, references_of, results
from pt2q.app.programs.conversion import (
    Converted,
    calibrated_together,
    check_data,
    convert_together,
    warn_of_data,
)
from pt2q.app.programs.data import Programs, ProgramsData
from pt2q.app.recipe import Recipe
from pt2q.app.recipe.writing import recipe_text
from pt2q.deploy.backend import Backend, DeployedTogether, Example
from pt2q.deploy.registry import BACKENDS
from pt2q.deploy.signature import Batch, dynamic_shapes, signature_of
from pt2q.errors import DataError
from pt2q.files import replacing
from pt2q.flow import provenance_of
from pt2q.ir.module import QuantGraphModule
from pt2q.ir.storage import is_low
from pt2q.ir.torch_private import pytree
from pt2q.quantizers import Report

Reports = dict[str, Report]


@dataclass(frozen=True)
class ProgramsOutcome:
    """What came out; see `Outcome`.

    Args:
        deployed: the quantized programs, written.
        reports: the quantizer's account of each program.
        float_size: bytes of the tensors of the float programs; what they share counts once.
        data: what was calibrated on, and compared on.
        figures: of each method that has data, against the float and the converted program.
        improved: what algorithms did.
        holdings: what the bytes of the file hold.
    """

    deployed: DeployedTogether
    reports: Reports
    float_size: int
    data: ProgramsData
    figures: dict[str, Figures]
    improved: Improved
    holdings: Holdings


def writes_together(backend: Backend) -> None:
    """Refuse a backend whose files hold one program.

    Args:
        backend: what is to read the file.

    Raises:
        DataError: it is refused.
    """
    if backend.deploy_together is None:
        have = [name for name in BACKENDS if BACKENDS[name].deploy_together is not None]
        raise DataError(
            f"{backend.name}: a {backend.suffix} file holds one program; several are methods of "
            f"one file for {', '.join(have)}: leave --backend out, or quantize them one by one"
        )


def run_together(
    programs: Programs,
    data: ProgramsData,
    recipe: Recipe,
    out: Path,
    *,
    show: Callable[[Reports], None] | None = None,
    progress: Progress | None = None,
    resume: Path | None = None,
) -> ProgramsOutcome:
    """Quantize several programs, write them to one file and compare it with float.

    Args:
        programs: the float programs by the names of their methods.
        data: of all of them, or of some.
        recipe: for which backend, and how.
        out: the file to write; an old one stays where the new one is refused.
        show: is given the quantizer's reports.
        progress: is told where algorithms stand.
        resume: a folder that keeps how far this came.

    Raises:
        DataError: the backend writes one program to a file, or a program lacks data that it needs.
        RequirementError, DisagreementError: the result is not what it has to be.
    """
    backend = BACKENDS[recipe.backend]
    writes_together(backend)
    assert backend.deploy_together is not None
    prepared = take_part_together(programs, data, recipe, resume, progress)
    reports = {name: model.record.get(Report) or Report() for name, model in prepared.items()}
    if show is not None:
        show(reports)
    converted = convert_together(prepared, data)
    if recipe.default.mode == "static":
        warn_of_data(programs, data)
    recipe.require.check_report(Report(tuple(chain.from_iterable(reports.values()))))
    held_out = list(data.held_out.at_hand())
    wanted = references_of(programs, converted, held_out)
    _say_so(converted, recipe, {name: found.converted for name, found in wanted.items()}, data)
    examples = {name: _example(name, program, data) for name, program in programs.items()}
    with replacing(out) as draft:
        deployed = backend.deploy_together(converted, examples, draft)
        figures = figures_of(wanted, results(deployed.runs, held_out))
        for name, found in figures.items():
            recipe.require.check_figures(found, f"{name} in {backend.runtime}")
    done = report_of(next(iter(converted.values())))
    held = holdings(out, deployed.size, *converted.values())
    return ProgramsOutcome(deployed, reports, _float_size(programs), data, figures, done, held)


def take_part_together(
    programs: Programs,
    data: ProgramsData,
    recipe: Recipe,
    resume: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, QuantGraphModule]:
    """Do this process's share of the work; all of it where there are no others.

    Args:
        programs, data, recipe, resume, progress: as for `run_together`.
    """
    improvement = Improvement(
        recipe.algorithms, recipe.effort, recipe.seed, is_low(), progress, resume=resume
    )
    check_data(programs, data, improvement)
    return calibrated_together(programs, recipe.quantizer(), data, improvement)


def _say_so(
    converted: Converted, recipe: Recipe, decibels: Mapping[str, float], data: ProgramsData
) -> None:
    """Have the file say where each of its methods comes from."""
    for name, model in converted.items():
        known = replace(provenance_of(model), recipe=recipe_text(recipe))
        if name in decibels:
            known = replace(known, sqnr=decibels[name], held_out=len(data.held_out))
        model.record.put(known)


def _example(name: str, program: ExportedProgram, data: ProgramsData) -> Example:
    signature = signature_of(program)
    if name not in data.names:
        own = _own_example(name, program)
        return Example(signature, own, dynamic_shapes(program, signature, [own]))
    calls = data.calibration.parts[name]
    shapes = dynamic_shapes(program, signature, chain(calls, data.held_out.parts[name]))
    return Example(signature, calls[0], shapes)


def _own_example(name: str, program: ExportedProgram) -> Batch:
    """The inputs that a program without data was exported with."""
    if program.example_inputs is None:
        raise DataError(
            f"program {name} has no data, and keeps no example inputs to be written with: give "
            f"--calibration {name}=FILE"
        )
    leaves = pytree.tree_leaves(program.example_inputs)
    return tuple(value for value in leaves if isinstance(value, Tensor))


def _float_size(programs: Programs) -> int:
    """Bytes of the tensors of float programs; those of one name count once."""
    found: dict[str, int] = {}
    for program in programs.values():
        for name, value in (*program.state_dict.items(), *program.constants.items()):
            if isinstance(value, Tensor):
                found[name] = value.nbytes
    return sum(found.values())
