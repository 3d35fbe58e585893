"""What a result has to be, or it is not written."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pt2q.app.figures import Figures
from pt2q.errors import DisagreementError, RequirementError
from pt2q.quantizers import Report


@dataclass(frozen=True)
class Requirements:
    """What a recipe asks of the result.

    Attributes:
        quantized: the least share of operators that are quantized, of those that the quantizer
            looked at; without it one has to be.
        min_sqnr: the least decibels of the file against float, on held-out data.
        agreement: the file has to compute what the converted model does.
    """

    quantized: float | None = None
    min_sqnr: float | None = None
    agreement: bool = True

    def check_report(self, report: Report) -> None:
        """Look at what was quantized.

        Raises:
            RequirementError: it is less than asked for.
        """
        found, total = sum(row.quantized for row in report.rows), len(report.rows)
        share = found / total if total else 0.0
        if self.quantized is None and not found:
            raise RequirementError(
                "nothing was quantized, and nothing is written: see --report for why; "
                "[require] quantized = 0 in a recipe allows it"
            )
        if self.quantized is not None and share < self.quantized:
            raise RequirementError(
                f"{found} of {total} operators are quantized ({share:.2f}), and [require] asks for "
                f"{self.quantized:g}: nothing is written; see --report for why"
            )

    def check_figures(self, figures: Figures, runtime: str) -> None:
        """Look at what was measured.

        Args:
            figures: of the file.
            runtime: where they were measured.

        Raises:
            RequirementError: the file is further from float than asked for.
            DisagreementError: it does not compute what the converted model does.
        """
        if self.agreement and not figures.agrees:
            raise DisagreementError(
                f"{runtime} computes something else than the converted model: "
                f"{figures.file:.1f} dB against float, the converted model {figures.converted:.1f}"
                " dB. Nothing is written. Leave what it gets wrong in float; [require] agreement ="
                " false in a recipe writes it all the same"
            )
        least = self.min_sqnr
        if least is not None and not math.isnan(figures.file) and figures.file < least:
            raise RequirementError(
                f"{figures.file:.1f} dB against float in {runtime}, and [require] asks for "
                f"{least:g}: nothing is written; pt2q compare says where it is lost"
            )
