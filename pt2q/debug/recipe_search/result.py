"""What a search found, as a table that can be read and stored."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from pt2q.account import Account
from pt2q.debug.diagnosis.changes import Change
from pt2q.debug.error import finite
from pt2q.debug.recipe_search.measuring import changes_of
from pt2q.debug.recipe_search.table import Assignment, Unit
from pt2q.tables import text_table


@dataclass(frozen=True)
class Trial:
    """One choice that was measured.

    Args:
        assignment: the form of each layer.
        cost: of all.
        value: of the output, in dB or what the metric says.
        met: it keeps within the bound.
    """

    assignment: Assignment
    cost: float
    value: float
    met: bool


@dataclass(frozen=True)
class SearchResult(Account):
    """What a search found.

    Args:
        units: the layers, with what each loses in each form; a new search takes them.
        chosen: the cheapest choice within the bound, or the best where there is none.
        trials: all that were measured, in order.
        by: the cost, ``"macs"`` or ``"bytes"``.
        whole: what the float model costs.
        measure: what the value is.
    """

    units: tuple[Unit, ...]
    chosen: Trial
    trials: tuple[Trial, ...]
    by: str
    whole: float
    measure: str

    @property
    def met(self) -> bool:
        """Whether the choice keeps within the bound."""
        return self.chosen.met

    @property
    def changes(self) -> tuple[Change, ...]:
        """What the choice says to a quantizer."""
        return changes_of(self.units, self.chosen.assignment)

    @property
    def share(self) -> float:
        """The cost of the choice over that of the float model."""
        return self.chosen.cost / self.whole if self.whole else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists."""
        return {
            "met": self.met,
            "value": finite(self.chosen.value),
            "measure": self.measure,
            "cost_share": self.share,
            "cost": self.by,
            "layers": [
                {**unit.to_dict(), "form": self.chosen.assignment[unit.name]} for unit in self.units
            ],
            "trials": [
                {"value": finite(t.value), "cost_share": t.cost / (self.whole or 1), "met": t.met}
                for t in self.trials
            ],
        }

    def text(self, width: int | None = None) -> str:
        """A line for each layer that has not the most frequent form, and what it comes to.

        Args:
            width: columns of the terminal.
        """
        forms = Counter(self.chosen.assignment.values())
        usual = forms.most_common(1)[0][0]
        rows = [
            (self.chosen.assignment[u.name], f"{u.cost('float', self.by) / self.whole:.1%}", u.name)
            for u in self.units
            if self.chosen.assignment[u.name] != usual
        ]
        table = text_table(("form", "of cost", "layer"), rows, right=("of cost",), width=width)
        counts = ", ".join(f"{count} {form}" for form, count in forms.most_common())
        end = (
            f"{counts}; cost {self.share:.1%} of float; {self.measure} {self.chosen.value:.4g}, "
            f"after {len(self.trials)} full measurement(s)"
        )
        no = "" if self.met else "\nthe bound cannot be met with these candidates; this is the best"
        return f"{table}\n{end}{no}" if rows else f"{end}{no}"
