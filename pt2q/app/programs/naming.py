"""Several programs and their data on the command line: ``NAME=FILE``, once for each."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pt2q.errors import DataError

_NAMED = re.compile(r"([A-Za-z_]\w*)=(.+)", re.DOTALL)


def are_named(given: Sequence[Path]) -> bool:
    """Whether models are given by name; a file may have a name with ``=`` in it.

    Args:
        given: the arguments.
    """
    if len(given) > 1:
        return True
    return _NAMED.fullmatch(str(given[0])) is not None and not given[0].exists()


def by_name(
    what: str, given: Sequence[Path], known: Sequence[str] | None = None
) -> dict[str, Path]:
    """What is given as ``NAME=FILE``, by its name.

    Args:
        what: it is, as messages say it.
        given: the arguments.
        known: the names that there are; None: any.

    Raises:
        DataError: one has no name, a name that nothing has, or that another one has.
    """
    found: dict[str, Path] = {}
    for one in given:
        match = _NAMED.fullmatch(str(one))
        if match is None:
            example = "prefill" if not known else known[0]
            raise DataError(
                f"{what} {one}: of several programs each is given by the name of its method, such "
                f"as {example}={one}"
            )
        name, path = match.groups()
        if known is not None and name not in known:
            raise DataError(
                f"{what} {one}: no program is called {name!r}; there are {', '.join(known)}"
            )
        if name in found:
            raise DataError(f"{what} {one}: {name!r} is given twice, as {found[name]} before")
        found[name] = Path(path)
    return found


def only(what: str, given: Sequence[Path]) -> Path | None:
    """What is given once at most, for a single program.

    Args:
        what: it is, as messages say it.
        given: the arguments.

    Raises:
        DataError: there are several.
    """
    if len(given) > 1:
        raise DataError(
            f"{what} is given {len(given)} times, and the model is one program: give it once, or "
            "several programs as NAME=FILE"
        )
    return given[0] if given else None


def files_of(what: str, found: Mapping[str, Path]) -> dict[str, Path]:
    """Named files by what they are to the command.

    Args:
        what: they are, as messages say it.
        found: by name.
    """
    return {f"{what} {name}": path for name, path in found.items()}
