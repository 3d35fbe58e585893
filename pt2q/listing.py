"""Lists of findings as text."""

from __future__ import annotations

from collections.abc import Iterable


def listed(head: str, items: Iterable[object]) -> str:
    """A line, and below it one for each item, indented.

    Args:
        head: what the items are.
        items: anything that can be printed.
    """
    return "\n".join([head, *(f"  {item}" for item in items)])
