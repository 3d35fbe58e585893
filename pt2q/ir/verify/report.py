"""What a check of the laws found."""

from __future__ import annotations

from dataclasses import dataclass

from pt2q.errors import GraphLawError
from pt2q.listing import listed


@dataclass(frozen=True)
class Violation:
    """A law that is broken.

    Args:
        law: its name in `LAWS`.
        node: the node, parameter or submodule at which.
        text: what was expected and what was found.
    """

    law: str
    node: str
    text: str

    def __str__(self) -> str:
        return f"[{self.law}] {self.node}: {self.text}"


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found.

    Args:
        violations: in the order of the laws, then of the graph.
        laws: the names of the laws that were checked.
    """

    violations: tuple[Violation, ...]
    laws: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether all laws hold."""
        return not self.violations

    def raise_if_broken(self) -> None:
        """Complain.

        Raises:
            GraphLawError: some law does not hold; the message names each violation.
        """
        if self.violations:
            raise GraphLawError(str(self))

    def __str__(self) -> str:
        if self.ok:
            return f"all laws hold: {', '.join(self.laws)}"
        return listed(f"{len(self.violations)} violation(s):", self.violations)
