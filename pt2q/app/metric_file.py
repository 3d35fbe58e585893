"""A function of the user's that says how good results are, from a Python file."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from pt2q.errors import DataError
from pt2q.library_output import first_line


def read_metric(given: str | None) -> Any:
    """Run a file and find a function in it.

    Args:
        given: ``FILE.py:FUNCTION``; None gives None.

    Raises:
        DataError: it is not written like this, the file does not run, or has no such function.
    """
    if given is None:
        return None
    file, _, name = given.rpartition(":")
    if not file or not name.isidentifier():
        raise DataError(f"metric {given}: expected FILE.py:FUNCTION")
    path = Path(file)
    if not path.is_file():
        raise DataError(f"metric {path}: no such file")
    found = getattr(_module(path), name, None)
    if not callable(found):
        raise DataError(f"metric {path}: it has no function {name!r}")
    return found


def _module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise DataError(f"metric {path}: no Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise DataError(f"metric {path}: it does not run: {first_line(error)}") from error
    return module
