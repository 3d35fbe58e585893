"""What a finished file is, by what stands in it."""

from __future__ import annotations

import zipfile
from importlib import import_module
from os import PathLike
from pathlib import Path

from pt2q.deploy.finished_file import FinishedFile
from pt2q.errors import DataError

_PTE_MAGIC = b"ET"


def describe(path: str | PathLike[str]) -> FinishedFile | None:
    """Read what a finished file is; nothing of it is run.

    Args:
        path: a ``.pte``, an ``.onnx``, or a package of Inductor.

    Returns:
        What was found; None for a file of another kind, such as an exported program.

    Raises:
        DataError: it is missing or damaged.
        MissingDependencyError: what reads it is not installed.
    """
    path = Path(path)
    room = room_of(path)
    if room is None:
        return None
    found: FinishedFile = import_module(f"pt2q.deploy.{room}.file_account").describe(path)
    return found


def room_of(path: Path) -> str | None:
    """The folder of this room that reads a file; None for one of another kind.

    Args:
        path: the file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    if head[4:6] == _PTE_MAGIC or path.suffix == ".pte":
        return "executorch"
    if path.suffix == ".onnx":
        return "onnx"
    return "inductor" if zipfile.is_zipfile(path) and _is_package(path) else None


def _is_package(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return False
    return any(name.partition("/")[2].startswith("data/aotinductor/") for name in names)
