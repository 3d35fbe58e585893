"""All backends by name: ours, and those of installed packages.

A package adds one by an entry point of the group ``pt2q.backends`` that names a `Backend`:

    [project.entry-points."pt2q.backends"]
    theirs = "their_package.target:THEIRS"
"""

from __future__ import annotations

from pt2q.deploy.backend import Backend
from pt2q.offers import BACKEND_GROUP, DEFAULT_BACKEND
from pt2q.offers import BACKENDS as OURS
from pt2q.registry import Registry


def _backend(name: str, found: object) -> Backend:
    if not isinstance(found, Backend):
        raise TypeError(f"expected a pt2q.deploy.Backend, found {type(found).__name__}")
    if found.name != name:
        raise TypeError(f"it calls itself {found.name!r}; both names have to be the same")
    return found


BACKENDS: Registry[Backend] = Registry(
    "backend",
    BACKEND_GROUP,
    OURS,
    _backend,
)
"""What the command line and recipes choose from."""

DEFAULT = DEFAULT_BACKEND
