"""Write files whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

from pt2q.errors import SaveError


@contextmanager
def replacing(path: str | PathLike[str]) -> Iterator[Path]:
    """A name to write to, in a folder of its own; at the end of the block it becomes `path`.

    An old file stays until then, and for good when the block raises. Whatever else stands in the
    folder by then comes along under its own name, before the file itself.

    Args:
        path: the file to write; its folder is made when missing.

    Raises:
        SaveError: the folder or the file cannot be written.
    """
    path = Path(path)
    with _named(path):
        _prepare(path)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            yield folder / path.name
            for file in sorted(folder.iterdir(), key=lambda file: file.name == path.name):
                os.replace(file, path.with_name(file.name))
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def write_bytes(path: str | PathLike[str], data: bytes) -> Path:
    """Write a file whole or not at all; see `replacing`.

    Args:
        path: the file to write; its folder is made when missing.
        data: its content, on the disk before the name is given.

    Returns:
        The path written.

    Raises:
        SaveError: the folder or the file cannot be written.
    """
    with replacing(path) as draft, open(draft, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return Path(path)


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
