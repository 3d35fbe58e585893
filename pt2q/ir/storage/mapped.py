"""Tensors that lie in files and are in memory only while they are read.

Within `low_memory` what is large and made to last, such as a quantized weight, is written to a file
of its own and mapped from there (`spilled`), and pages of mapped programs go when `release` is
called. A mapped tensor is one like any other: what is written into it stays in memory.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

LARGE = 1 << 16
"""So many bytes are worth a file."""


class MappedFile:
    """A file as memory.

    Args:
        path: the file; it may be deleted while it is mapped.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        with open(path, "rb") as stream:
            self.memory = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)

    def tensor(self, dtype: torch.dtype, count: int, start: int = 0) -> Tensor:
        """Some of it as a flat tensor, with a storage of its own.

        Args:
            dtype: of its elements.
            count: how many there are, at least one.
            start: the first byte.
        """
        return torch.frombuffer(self.memory, dtype=dtype, count=count, offset=start)

    def release(self) -> None:
        """Let go of the pages in memory; what was written into tensors is lost."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self.memory.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True)
class LowMemory:
    """Where large tensors go.

    Args:
        folder: in which files are made, and deleted at once: what is mapped stays; None: the
            system's folder for temporary files.
        programs: what is read again and again, and never written.
    """

    folder: Path | None = None
    programs: list[MappedFile] = field(default_factory=list)


# The C library keeps what large tensors leave behind, in pieces, unless it is asked not to.
_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None

_at_work: ContextVar[LowMemory | None] = ContextVar("low_memory", default=None)


@contextmanager
def low_memory(folder: Path | None = None) -> Iterator[LowMemory]:
    """Keep large tensors in files within a block.

    Args:
        folder: see `LowMemory`.
    """
    token = _at_work.set(LowMemory(folder))
    try:
        yield _at_work.get() or LowMemory()
    finally:
        _at_work.reset(token)


def is_low() -> bool:
    """Whether large tensors go to files here."""
    return _at_work.get() is not None


def let_go_of(program: MappedFile) -> None:
    """Let `release` do so from now on.

    Args:
        program: nothing is written into its tensors.
    """
    found = _at_work.get()
    if found is not None:
        found.programs.append(program)


def release() -> None:
    """Where memory is low, let go of what mapped programs have in memory, and of what is free."""
    found = _at_work.get()
    if found is None:
        return
    for program in found.programs:
        program.release()
    if _TRIM is not None:
        _TRIM(0)


def spilled(tensor: Tensor) -> Tensor:
    """A tensor that was made to last: in a file where memory is low and it is large.

    Args:
        tensor: nobody else has it. Its strides are kept where it is dense.
    """
    found = _at_work.get()
    plain = type(tensor) is Tensor and tensor.device.type == "cpu"
    if found is None or not plain or tensor.nbytes < LARGE or not tensor.is_contiguous():
        return tensor
    with tempfile.NamedTemporaryFile(prefix="pt2q-tensor-", dir=found.folder) as stream:
        stream.write(tensor.detach().reshape(-1).view(torch.uint8).numpy().data)
        stream.flush()
        mapped = MappedFile(stream.name)
    return mapped.tensor(tensor.dtype, tensor.numel()).view(tensor.shape)
