"""A function of the user's, from a Python file."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pt2q.errors import DataError
from pt2q.library_output import first_line

FUNCTION = r"(.+\.py):([^:/]*)"
"""How one is given: ``FILE.py:FUNCTION``."""


def read_function(what: str, given: str) -> Callable[..., Any]:
    """Run a file and find a function in it.

    Args:
        what: what it is for, as messages say it.
        given: ``FILE.py:FUNCTION``.

    Raises:
        DataError: it is not written like this, the file does not run, or has no such function.
    """
    file, _, name = given.rpartition(":")
    if not file or not name.isidentifier():
        raise DataError(f"{what} {given}: expected FILE.py:FUNCTION")
    path = Path(file)
    if not path.is_file():
        raise DataError(f"{what} {path}: no such file")
    found: Callable[..., Any] | None = getattr(_module(what, path), name, None)
    if not callable(found):
        raise DataError(f"{what} {path}: it has no function {name!r}")
    return found


def file_of(given: Path | None) -> Path | None:
    """The file of what is given as a file or as a function in one.

    Args:
        given: a path, or ``FILE.py:FUNCTION``.
    """
    if given is None or ".py:" not in str(given):
        return given
    return Path(str(given).rpartition(":")[0])


def _module(what: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise DataError(f"{what} {path}: no Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise DataError(f"{what} {path}: it does not run: {first_line(error)}") from error
    return module
