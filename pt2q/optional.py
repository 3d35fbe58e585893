"""Packages that only some targets need."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from pt2q.errors import MissingDependencyError
from pt2q.library_output import quiet_python


def optional_modules(*names: str, extra: str) -> tuple[Any, ...]:
    """Import modules of packages that need not be installed.

    Args:
        names: modules, such as ``executorch.exir``.
        extra: the extra of pt2q that installs them.

    Raises:
        MissingDependencyError: one of them is not installed.
    """
    try:
        with quiet_python():
            return tuple(import_module(name) for name in names)
    except ImportError as error:
        raise MissingDependencyError(
            f'{error.name or names[0]} is not installed ({error}): pip install "pt2q[{extra}]"'
        ) from error
