"""Write files whole or not at all.

A file is written in a folder of its own beside its target, whose name says which process made it,
and takes the target's name in one step. A process that is killed leaves that folder; the next one
that writes there removes it.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

from pt2q.errors import DataError, SaveError


@dataclass
class _Draft:
    """A file on its way.

    Args:
        folder: where it is written.
        target: where it goes.
        outdated: what its taking place makes useless.
    """

    folder: Path
    target: Path
    outdated: set[Path] = field(default_factory=set)


_drafts: ContextVar[tuple[_Draft, ...]] = ContextVar("drafts", default=())


@contextmanager
def replacing(path: str | PathLike[str]) -> Iterator[Path]:
    """A name to write to, in a folder of its own; at the end of the block it becomes `path`.

    An old file stays until then, and for good when the block raises. Whatever else stands in the
    folder by then comes along under its own name, before the file itself. A link is followed.

    Args:
        path: the file to write; its folder is made when missing.

    Raises:
        SaveError: the folder or the file cannot be written.
    """
    target = Path(os.path.realpath(path))
    with _named(Path(path)), _folders_of(target):
        _sweep(target)
        draft = _Draft(Path(tempfile.mkdtemp(prefix=_prefix(target), dir=target.parent)), target)
        token = _drafts.set((*_drafts.get(), draft))
        try:
            yield draft.folder / target.name
            _put_in_place(draft)
        finally:
            _drafts.reset(token)
            shutil.rmtree(draft.folder, ignore_errors=True)


def _put_in_place(draft: _Draft) -> None:
    written = sorted(draft.folder.iterdir(), key=lambda file: file.name == draft.target.name)
    for file in written:
        place = draft.target.with_name(file.name)
        if place.is_file():
            file.chmod(place.stat().st_mode & 0o777)
        os.replace(file, place)
    outer = next((d for d in _drafts.get() if d.folder == draft.target.parent), None)
    if outer is not None:  # itself a draft
        outer.outdated |= draft.outdated
        return
    for path in draft.outdated - {draft.target.with_name(file.name) for file in written}:
        with suppress(OSError):
            path.unlink()


def final_path(path: Path) -> Path:
    """Where a draft goes in the end; a path that is none is itself.

    Args:
        path: as `replacing` gave it, or in its folder.
    """
    for draft in reversed(_drafts.get()):
        if Path(os.path.realpath(path.parent)) == draft.folder:
            path = draft.target.with_name(path.name)
    return path


def outdated(draft: Path, path: Path) -> None:
    """Have a file removed once a draft is in place, where it still is then and was not replaced.

    Args:
        draft: as `replacing` gave it.
        path: what only the old file needs.
    """
    found = next(d for d in reversed(_drafts.get()) if d.folder == draft.parent)
    found.outdated.add(path)


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
    """Find out before the work whether `path` can be written after it; leaves nothing behind.

    Raises:
        SaveError: the folder or the file cannot be written.
    """
    target = Path(os.path.realpath(path))
    with _named(Path(path)):
        _refuse_odd(target)
        above = next(folder for folder in target.parents if folder.exists())
        with tempfile.TemporaryFile(dir=above):
            pass
        longest = os.pathconf(above, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
        if len(os.fsencode(target.name)) > longest - len(os.fsencode(_prefix(Path("x")))) - 8:
            raise OSError(None, f"its name is too long: {len(target.name)} characters")


def check_outputs(outputs: Mapping[str, Path | None], inputs: Mapping[str, Path | None]) -> None:
    """Refuse outputs that are inputs or each other, by other names, links and hard links too.

    Args:
        outputs, inputs: the files of a command by what they are to it; None for one not given.

    Raises:
        DataError: two of them are one file.
        SaveError: an output cannot be written.
    """
    written: list[tuple[str, Path]] = []
    for what, path in ((what, path) for what, path in outputs.items() if path is not None):
        for other, read in inputs.items():
            if read is not None and _same(path, read):
                raise DataError(
                    f"{path} is read by this command ({other}): write {what} to another file"
                )
        for other, taken in written:
            if _same(path, taken):
                raise DataError(f"{path} is written twice: as {other} and as {what}")
        written.append((what, path))
        ensure_writable(path)


def _same(a: Path, b: Path) -> bool:
    if os.path.realpath(a) == os.path.realpath(b):
        return True
    with suppress(OSError):
        return os.path.samefile(a, b)
    return False


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except SaveError:
        raise
    except OSError as error:
        raise SaveError(f"cannot write {path}: {error.strerror or error}") from error


def _refuse_odd(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(None, "it is a folder")
    if path.exists() and not path.is_file():
        raise OSError(None, "it is no ordinary file")
    above = next((p for p in path.parents if p.exists()), path.parent)
    if not above.is_dir():
        raise NotADirectoryError(None, f"{above} is a file, not a folder")


@contextmanager
def _folders_of(path: Path) -> Iterator[None]:
    """Make the folders that are missing above a file; a block that raises leaves none of them."""
    _refuse_odd(path)
    missing = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for folder in missing:
            with suppress(OSError):  # not empty: others write there too
                folder.rmdir()
        raise


_HERE = f"{zlib.crc32(socket.gethostname().encode()):08x}"
_MADE_BY = re.compile(rf"\.(\d+)-{_HERE}\.\w+$")


def _prefix(target: Path) -> str:
    return f".{target.name[:100]}.{os.getpid()}-{_HERE}."


def _sweep(target: Path) -> None:
    """Remove what processes of this machine that were killed have left of the same file."""
    for folder in target.parent.glob(".*"):
        found = _MADE_BY.search(folder.name)
        ours = folder.name.startswith(f".{target.name[:100]}.")
        if found and ours and not _lives(int(found[1])) and folder.is_dir():
            shutil.rmtree(folder, ignore_errors=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is somebody else's
        return True
    return True
