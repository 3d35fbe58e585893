"""What the doctor found, as data and as text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pt2q.account import Account
from pt2q.debug.diagnosis.changes import Change
from pt2q.debug.error import finite
from pt2q.tables import UNBROKEN


@dataclass(frozen=True)
class Finding:
    """One cause of a loss.

    Args:
        cause: in a few words.
        nodes: whose values are affected, as in the graph.
        modules: that these were written in.
        evidence: what shows it.
        gain_db: what the fix won by itself, in dB of the output, measured.
        fix: what was tried; None where there is nothing to try.
        alone_db: of the output when these tensors alone are quantized, before; None for causes
            that are no tensor's.
    """

    cause: str
    nodes: tuple[str, ...]
    modules: tuple[str, ...]
    evidence: str
    gain_db: float
    fix: Change | None = None
    alone_db: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON; what is not finite is None."""
        return {
            "cause": self.cause,
            "nodes": list(self.nodes),
            "modules": list(self.modules),
            "evidence": self.evidence,
            "gain_db": finite(self.gain_db),
            "fix": None if self.fix is None else str(self.fix),
        }


@dataclass(frozen=True)
class Diagnosis(Account):
    """What is wrong, the worst first, and what it comes to when mended.

    Args:
        findings: ordered by what their fixes win.
        before: the output's signal to noise ratio in dB, on data that nothing was made from.
        after: with ``changes`` made.
        changes: the fixes that are worth it together, in the order in which they are made.
    """

    findings: tuple[Finding, ...]
    before: float
    after: float
    changes: tuple[Change, ...]

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists."""
        return {
            "findings": [finding.to_dict() for finding in self.findings],
            "before_db": finite(self.before),
            "after_db": finite(self.after),
            "changes": [str(change) for change in self.changes],
        }

    def text(self, width: int | None = 80) -> str:
        """A paragraph for each finding.

        Args:
            width: lines are broken there; None never breaks one.
        """
        lines: list[str] = []
        width = UNBROKEN if width is None else width
        for number, finding in enumerate(self.findings, 1):
            where = ", ".join(finding.nodes[:3]) + (", ..." if len(finding.nodes) > 3 else "")
            place = f" (in {', '.join(finding.modules[:2])})" if finding.modules else ""
            at = f": {where}{place}" if where else ""
            lines += _wrapped(f"{number}. {finding.cause}{at}", width, "")
            lines += _wrapped(finding.evidence, width, "   ")
            if finding.fix is not None:
                lines += _wrapped(f"> {finding.fix}: {finding.gain_db:+.1f} dB", width, "   ")
        made = "; ".join(map(str, self.changes)) or "nothing"
        lines += _wrapped(
            f"SQNR {self.before:.1f} dB, with these changes {self.after:.1f} dB: {made}", width, ""
        )
        return "\n".join(lines)


def _wrapped(text: str, width: int, start: str) -> list[str]:
    return textwrap.wrap(text, width, initial_indent=start, subsequent_indent="   ")
