"""Write files whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path

from pt2q.errors import Pt2qError


class SaveError(Pt2qError, OSError):
    """A file could not be written where it was asked for."""


def write_bytes(path: str | PathLike[str], data: bytes) -> Path:
    """Write a file whole or not at all.

    The bytes go to a temporary name in the same folder, reach the disk, and take the place of
    `path` in one step; an old file stays until then.

    Args:
        path: the file to write; its folder is made when missing.
        data: its content.

    Returns:
        The path written.

    Raises:
        SaveError: the folder or the file cannot be written.
    """
    path = Path(path)
    with _named(path):
        _prepare(path)
        _replace(path, data)
    return path


def ensure_writable(path: str | PathLike[str]) -> None:
    """Find out before the work whether `path` can be written after it.

    Raises:
        SaveError: the folder or the file cannot be written.
    """
    path = Path(path)
    with _named(path):
        _prepare(path)
        with tempfile.TemporaryFile(dir=path.parent):
            pass


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SaveError(f"cannot write {path}: {error.strerror or error}") from error


def _prepare(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(None, "it is a folder")
    if path.parent.is_file():
        raise NotADirectoryError(None, f"{path.parent} is a file, not a folder")
    path.parent.mkdir(parents=True, exist_ok=True)


def _replace(path: Path, data: bytes) -> None:
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp gives 0o600
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
