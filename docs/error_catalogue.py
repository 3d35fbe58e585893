"""The page of errors and warnings: `python docs/error_catalogue.py` writes docs/errors.md.

Every class of `pt2q.errors` says in its docstring what it means, then, each in a paragraph of its
own, what causes it and the way out.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

from pt2q import errors

PAGE = Path(__file__).with_name("errors.md")
CAUSE, WAY_OUT = "Cause: ", "Way out: "
HEAD = """# Errors and warnings

<!-- Written by docs/error_catalogue.py from the docstrings of pt2q/errors.py: edit those. -->

What pt2q raises on purpose is one of the classes on this page; all are in `pt2q.errors`. A message
says what was expected, what was found, where, and the way out; here is what messages of one class
have in common. Each class is also one of Python's own, so code that catches `ValueError`, say, need
not know pt2q. The command line prints the message in one line and ends with exit code 1.
"""
ALL_ERRORS = """
## Errors

`except pt2q.Pt2qError` catches them all.
"""
ALL_WARNINGS = """
## Warnings

`warnings.simplefilter("error", pt2q.Pt2qWarning)` makes them errors, in a build for instance.
"""


def classes(base: type) -> list[type]:
    """The classes of `pt2q.errors` below a base class, in the order of the file."""
    found = vars(errors).values()
    return [c for c in found if inspect.isclass(c) and issubclass(c, base) and c is not base]


def account(kind: type) -> tuple[str, str, str]:
    """What a class says of itself.

    Args:
        kind: a class of `pt2q.errors`.

    Returns:
        Its meaning, its cause, and the way out.

    Raises:
        ValueError: its docstring lacks one of them.
    """
    paragraphs = [" ".join(p.split()) for p in (inspect.getdoc(kind) or "").split("\n\n")]
    cause = [p.removeprefix(CAUSE) for p in paragraphs if p.startswith(CAUSE)]
    way_out = [p.removeprefix(WAY_OUT) for p in paragraphs if p.startswith(WAY_OUT)]
    if len(paragraphs) != 3 or len(cause) != 1 or len(way_out) != 1:
        raise ValueError(
            f"the docstring of pt2q.errors.{kind.__name__} needs three paragraphs: what it means, "
            f"'{CAUSE}...', '{WAY_OUT}...'; found {paragraphs}"
        )
    return paragraphs[0], cause[0], way_out[0]


def entry(kind: type) -> str:
    """The part of the page about one class."""
    meaning, cause, way_out = account(kind)
    bases = ", ".join(f"`{base.__name__}`" for base in kind.__bases__)
    return (
        f"\n### {kind.__name__}\n\n{meaning}\n\n**Cause.** {cause}\n\n"
        f"**Way out.** {way_out}\n\nBases: {bases}.\n"
    )


def parts() -> Iterator[str]:
    """The page in pieces."""
    yield HEAD
    yield ALL_ERRORS
    yield from map(entry, classes(errors.Pt2qError))
    yield ALL_WARNINGS
    yield from map(entry, classes(errors.Pt2qWarning))


def page() -> str:
    """The whole page, as Markdown."""
    return "".join(parts())


if __name__ == "__main__":
    PAGE.write_text(page())
