"""What commands that look for lost accuracy begin with: a prepared model, data to measure on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch.export import ExportedProgram

from pt2q.algorithms import Improvement
from pt2q.app.chosen import chosen_recipe, data_of
from pt2q.app.console import track
from pt2q.app.conversion import calibrated, calls_of
from pt2q.app.data.source import Batches
from pt2q.app.figures import tried
from pt2q.app.metrics import Metric, read_metric
from pt2q.app.options import Asked
from pt2q.app.program_file import read_program
from pt2q.app.recipe import Recipe
from pt2q.debug import QuantizerSetup
from pt2q.debug.diagnosis.changes import improved
from pt2q.ir.module import QuantGraphModule
from pt2q.quantizers import Report


@dataclass(frozen=True)
class Subject:
    """A model with a recipe and data.

    Args:
        program: the float model.
        recipe: how it is quantized.
        calibration: what observers see.
        kept: what is measured on.
        metric: judges.
    """

    program: ExportedProgram
    recipe: Recipe
    calibration: Batches
    kept: Batches
    metric: Metric | None = None

    @cached_property
    def measured(self) -> Sequence[Any]:
        """The calls of the model to measure on; they are few and gone through often."""
        return calls_of(self.program, list(tried(self.program, self.kept)))

    @property
    def calls(self) -> Sequence[Any]:
        """The calibration data as calls of the model."""
        return calls_of(self.program, self.calibration)

    @property
    def improvement(self) -> Improvement:
        """What wins accuracy back."""
        return Improvement(self.recipe.algorithms, self.recipe.effort, self.recipe.seed)

    def setup(self) -> QuantizerSetup:
        """Quantizes the model as the recipe says, and with changes."""
        return QuantizerSetup(
            self.program,
            self.recipe.quantizer,
            self.calls,
            self.measured[::2],
            improvement=self.improvement,
        )

    def prepared(self) -> tuple[QuantGraphModule, Report]:
        """Prepared and calibrated, with what its quantizer decided."""
        quantizer = self.recipe.quantizer()
        made = calibrated(self.program, quantizer, self.calibration, track)
        made = improved(made, self.calls, self.improvement)
        return made, quantizer.report()


def subject(
    asked: Asked,
    batches: int | None,
    written: Mapping[str, Path | None],
    metric: str | None = None,
) -> Subject:
    """Read what a command was given; what cannot be asked for is found before the work.

    Args:
        asked: the options that commands share.
        batches: how many to measure on, held out or, where these are too few, not; None for
            those that are held out.
        written: the files that will be written, by the option.
        metric: ``FILE.py:FUNCTION`` that judges.
    """
    chosen = chosen_recipe(asked, written, metric)
    program = read_program(asked.model)
    data = data_of(program, asked, chosen)
    kept = data.held_out if batches is None else data.to_measure(batches)
    return Subject(program, chosen, data.calibration, kept, read_metric(metric, kept.numbers))
