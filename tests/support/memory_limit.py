"""A group of processes that may have so much memory; the kernel ends one that takes more."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# The first version of control groups has a folder for each kind of limit, the second one for all.
GROUPS = (
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
    (Path("/sys/fs/cgroup"), "memory.max"),
)


@contextmanager
def limited_group(limit: int) -> Iterator[Path | None]:
    """A group whose members have ``limit`` bytes for what they touch from when they join.

    Args:
        limit: bytes.

    Yields:
        Its folder, for `join`; None where this user may make none.
    """
    folder = None
    for root, file in GROUPS:
        folder = _made(root / f"pt2q-{uuid.uuid4().hex}", file, limit)
        if folder is not None:
            break
    try:
        yield folder
    finally:
        if folder is not None:
            folder.rmdir()


def _made(folder: Path, file: str, limit: int) -> Path | None:
    if not (folder.parent / "cgroup.procs").exists():
        return None
    try:
        folder.mkdir()
    except OSError:
        return None
    try:
        (folder / file).write_text(str(limit))
    except OSError:
        folder.rmdir()
        return None
    return folder


def join(folder: Path) -> None:
    """Let this process be a member; what it has is not counted, what it takes is."""
    (folder / "cgroup.procs").write_text(str(os.getpid()))
