"""Docstrings describe parameters that belong together in one line, ``low, high: the range``.

The parser of docstrings knows one name per line; this extension of it gives each name its own.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

LIST = re.compile(r"^( *)(?:Args|Attributes):\n(?:\1 +.*\n|\n)*", re.MULTILINE)
ENTRY = re.compile(r"^( +)(\w+(?:, \w+)+): (.*\n(?:\1 +.*\n)*)", re.MULTILINE)


def one_name_per_line(text: str) -> str:
    """Repeat what is said of several parameters for each of them.

    Args:
        text: a docstring in Google style.

    Returns:
        The same docstring with one name per entry of its lists of parameters and attributes.
    """
    return LIST.sub(lambda found: ENTRY.sub(_repeated, found[0]), f"{text}\n").removesuffix("\n")


def _repeated(entry: re.Match[str]) -> str:
    indent, names, account = entry.groups()
    return "".join(f"{indent}{name}: {account}" for name in names.split(", "))


class OneNamePerLine(Extension):
    """Rewrites each docstring before it is parsed."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called for each object that has been read."""
        if obj.docstring is not None:
            obj.docstring.value = one_name_per_line(obj.docstring.value)
