"""Arrays of a `.npz`, row by row, as they stand in the file.

What `numpy.savez` writes is not compressed: rows are mapped from the archive itself, a call at a
time. What `numpy.savez_compressed` writes is unpacked as far as it is read.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from pt2q.app.data.fitting import fitted
from pt2q.app.data.source import Source
from pt2q.deploy.signature import Batch, Signature
from pt2q.errors import DataError
from pt2q.library_output import first_line

_LOCAL_HEADER = 30
"""Bytes of a zip archive's header of a member, before its name and its extra field."""


@dataclass(frozen=True)
class Member:
    """An array in an archive; see `pt2q.app.data.fitting.Column`.

    Args:
        file: the archive.
        name: of the member.
        kind: of its elements.
        sizes: its shape.
        fortran: columns stand together, not rows.
        header: bytes of the member before its values.
        begin: where the member begins in the archive; None where it is compressed.
        stream: the member, unpacked as far as it was read; for a compressed one.
    """

    file: Path
    name: str
    kind: np.dtype[Any]
    sizes: tuple[int, ...]
    fortran: bool
    header: int
    begin: int | None
    stream: IO[bytes] | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of its elements."""
        return torch.from_numpy(np.empty(0, self.kind.newbyteorder("="))).dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""
        return self.sizes

    def __getitem__(self, rows: slice) -> Tensor:
        """Some rows, in memory."""
        found = self._mapped(rows) if self.begin is not None else self._unpacked(rows)
        return torch.from_numpy(np.array(found, dtype=self.kind.newbyteorder("="), order="C"))

    def _mapped(self, rows: slice) -> Any:
        assert self.begin is not None
        if 0 in self.sizes or not self.sizes:
            with self.file.open("rb") as file:
                file.seek(self.begin + self.header)
                return np.fromfile(file, self.kind, math.prod(self.sizes)).reshape(self.sizes)
        order: Literal["F", "C"] = "F" if self.fortran else "C"
        start = self.begin + self.header
        # Mapped for these rows alone: pages that were read count as this process's memory.
        return np.memmap(self.file, self.kind, "r", start, self.sizes, order)[rows]

    def _unpacked(self, rows: slice) -> Any:
        assert self.stream is not None
        start, stop, _ = rows.indices(self.sizes[0]) if self.sizes else (0, 0, 1)
        whole = rows == slice(None) or self.fortran
        size = math.prod(self.sizes if whole else self.sizes[1:]) * self.kind.itemsize
        self.stream.seek(self.header + (0 if whole else start * size))
        data = np.frombuffer(self.stream.read(size if whole else (stop - start) * size), self.kind)
        if whole:
            return data.reshape(self.sizes, order="F" if self.fortran else "C")[rows]
        return data.reshape(-1, *self.sizes[1:])


class ArrayFile(Source):
    """A `.npz`: arrays by the names of the inputs, or in their order.

    Args:
        file: the file.
        signature: of the model.

    Raises:
        DataError: it is not readable, or does not fit.
    """

    def __init__(self, file: Path, signature: Signature) -> None:
        self.file, self.where = file, f"calibration data {file}"
        with self._readable(), zipfile.ZipFile(file) as archive:
            members = {
                info.filename.removesuffix(".npy"): _member(file, archive, info)
                for info in archive.infolist()
            }
        self.item = fitted(self.where, members, signature, in_order=True)

    def __len__(self) -> int:
        return self.item.calls

    def read(self, numbers: Sequence[int]) -> Iterator[Batch]:
        """See `Source.read`."""
        with self._readable(), ExitStack() as files:
            archive = files.enter_context(zipfile.ZipFile(self.file))
            columns = tuple(_opened(member, archive, files) for member in self.item.columns)
            yield from replace(self.item, columns=columns).read(numbers)

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except DataError:
            raise
        except Exception as error:
            raise DataError(f"{self.where}: not readable: {first_line(error)}") from error


def _opened(member: Any, archive: zipfile.ZipFile, files: ExitStack) -> Any:
    """A member that can be read; a compressed one has a stream of its own."""
    if member.begin is not None:
        return member
    return replace(member, stream=files.enter_context(archive.open(member.name)))


def _member(file: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
    """An array by what its header says.

    Raises:
        ValueError: it is no array of numbers, or not all of it is there.
    """
    with archive.open(info) as stream:
        version = npy.read_magic(stream)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, kind = read(stream)
        header = stream.tell()
    if kind.hasobject:
        raise ValueError(
            f"{info.filename} holds Python objects, which would run code to be read; write arrays "
            "of numbers, all of one shape"
        )
    missing = header + math.prod(shape) * kind.itemsize - info.file_size
    if missing:
        raise ValueError(f"{info.filename} is {missing} bytes short")
    stored = info.compress_type == zipfile.ZIP_STORED
    begin = _begin(file, info) if stored else None
    found = Member(file, info.filename, kind, shape, fortran, header, begin)
    assert found.dtype is not None  # raises where torch has no such type
    return found


def _begin(file: Path, info: zipfile.ZipInfo) -> int:
    with file.open("rb") as archive:
        archive.seek(info.header_offset)
        header = archive.read(_LOCAL_HEADER)
    lengths = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
    return info.header_offset + _LOCAL_HEADER + sum(lengths)
