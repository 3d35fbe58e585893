"""Attributes of other packages, replaced for a while and put back whatever happens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_INHERITED = object()


@contextmanager
def replaced(owner: Any, **values: Any) -> Iterator[None]:
    """Within it, a class, a module or an object has other attributes; after it, those of before.

    Threads that replace the same attribute have to take turns: each puts back what it found.

    Args:
        owner: whose attributes; what it inherits or computes, it inherits or computes again.
        **values: the attributes by name.
    """
    before = {name: vars(owner).get(name, _INHERITED) for name in values}
    try:
        for name, value in values.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            if value is not _INHERITED:
                setattr(owner, name, value)
            elif name in vars(owner):
                delattr(owner, name)
