"""A saved model and calibration data from files, checked against each other.

What the files may hold:

- `.npz`: arrays named like the model's inputs. Where no name is an input's they are taken in order,
  and a `DataOrderWarning` says so if numpy did not name them (``arr_0``) or there are several.
- `.pt`: a tensor, a tuple of tensors in the order of the inputs, a dict by input name, or a list
  of such things. Read with `weights_only=True`.
- a folder: all its `.npz` and `.pt` files, sorted by name.

The first axis of every array is split into batches of the size that the model was exported with;
a rest that does not fill a batch is left out. When the inputs have no first axis in common, each
set of arrays has to be exactly one call of the model.
"""

from __future__ import annotations

import os
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from pt2q.app.archive import check_archive
from pt2q.deploy.signature import Batch, Input, Signature
from pt2q.errors import DataError, DataOrderWarning
from pt2q.library_output import first_line, quiet_python

TRUSTED: ContextVar[bool] = ContextVar("trusted", default=False)
"""Whether model files are loaded without a look at what they would run."""


def read_program(path: str | PathLike[str]) -> ExportedProgram:
    """Load what `torch.export.save` wrote.

    Raises:
        DataError: the file is missing, truncated or something else.
        UntrustedFileError: loading it could run code, and `TRUSTED` is not set.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise DataError(f"model {path}: no such file")
    if not zipfile.is_zipfile(path):
        raise DataError(
            f"model {path}: truncated, or not written by torch.export.save "
            f"({path.stat().st_size} bytes)"
        )
    if not TRUSTED.get():
        check_archive(path)
    try:
        with quiet_python():
            return torch.export.load(path)
    except Exception as error:
        raise DataError(f"model {path}: torch.export.load failed: {first_line(error)}") from error


def read_batches(path: str | PathLike[str], signature: Signature) -> tuple[Batch, ...]:
    """Read calibration data and cut it into calls of the program.

    Raises:
        DataError: a file is missing, unreadable, empty, or does not fit the inputs.
    """
    batches: list[Batch] = []
    for file in _files(Path(path)):
        for item in _items(file):
            batches += _split(file, _ordered(file, item, signature), signature)
    if not batches:
        raise DataError(
            f"calibration data {path}: empty, not one batch of {signature.batch or 1} in it"
        )
    return tuple(batches)


def _files(path: Path) -> tuple[Path, ...]:
    if not path.exists():
        raise DataError(f"calibration data {path}: no such file or folder")
    if not path.is_dir():
        return (path,)
    files = tuple(sorted(p for p in path.iterdir() if p.suffix in (".npz", ".pt")))
    if not files:
        raise DataError(f"calibration data {path}: the folder holds no .npz and no .pt file")
    return files


def _items(file: Path) -> Iterator[Any]:
    if file.suffix == ".npz":
        yield _read_npz(file)
    elif file.suffix == ".pt":
        content = _read_pt(file)
        yield from content if isinstance(content, list) else [content]
    else:
        raise DataError(f"calibration data {file}: expected .npz or .pt, got {file.suffix!r}")


def _read_npz(file: Path) -> dict[str, Tensor]:
    try:
        # Opened here, because numpy leaves a file open that it cannot read.
        with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except Exception as error:
        raise DataError(f"calibration data {file}: not readable: {first_line(error)}") from error


def _read_pt(file: Path) -> Any:
    try:
        return torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:
        raise DataError(f"calibration data {file}: not readable: {first_line(error)}") from error


def _ordered(file: Path, item: Any, signature: Signature) -> Batch:
    """The tensors of one item in the order of the program's inputs."""
    names = [wanted.name for wanted in signature.inputs]
    if isinstance(item, Mapping):
        item = _by_name(file, item, names)
    if isinstance(item, Tensor):
        item = (item,)
    if not isinstance(item, tuple) or not all(isinstance(x, Tensor) for x in item):
        raise DataError(f"calibration data {file}: expected tensors, got {type(item).__name__}")
    if len(item) != len(names):
        raise DataError(
            f"calibration data {file}: the model takes {len(names)} input(s) {names}, "
            f"got {len(item)}"
        )
    plain = tuple(_plain(file, tensor) for tensor in item)
    for wanted, tensor in zip(signature.inputs, plain, strict=True):
        _check(file, wanted, tensor, signature.batch)
    return plain


def _plain(file: Path, tensor: Tensor) -> Tensor:
    """A tensor with values of its own in memory, laid out in strides.

    Raises:
        DataError: it is of another kind.
    """
    kind = next(
        (
            k
            for k in ("is_sparse", "is_nested", "is_meta", "is_quantized", "is_mkldnn")
            if getattr(tensor, k)
        ),
        "",
    )
    if kind or tensor.layout is not torch.strided or type(tensor) not in (Tensor, nn.Parameter):
        what = kind.removeprefix("is_") or str(tensor.layout)
        raise DataError(
            f"calibration data {file}: holds a {what} tensor; write ordinary ones, such as "
            "x.to_dense()"
        )
    return tensor.detach()


def _by_name(file: Path, item: Mapping[str, Any], names: list[str]) -> tuple[Any, ...]:
    """The values of a mapping in the order of names; arrays of a .npz may be named otherwise."""
    if set(item) == set(names):
        return tuple(item[name] for name in names)
    if file.suffix == ".pt" or set(item) & set(names):
        raise DataError(
            f"calibration data {file}: the model's inputs are {names}, got {sorted(map(str, item))}"
        )
    if 1 < len(item) == len(names) and not all(re.fullmatch(r"arr_\d+", name) for name in item):
        pairs = ", ".join(f"{a} for {b}" for a, b in zip(item, names, strict=False))
        warnings.warn(
            f"calibration data {file}: none of {list(item)} is an input of the model; taken in "
            f"order: {pairs}. Name them like the inputs, {names}",
            DataOrderWarning,
            stacklevel=2,
        )
    return tuple(item.values())


def _check(file: Path, wanted: Input, tensor: Tensor, batch: int | None) -> None:
    free = batch is not None  # the first axis may be of any length: it is split
    shape = (None, *wanted.shape[1:]) if free else wanted.shape
    fits = tensor.dim() == len(shape) and all(
        size is None or size == actual for size, actual in zip(shape, tensor.shape, strict=True)
    )
    if tensor.dtype != wanted.dtype or not fits:
        expected = Input(wanted.name, wanted.dtype, shape)
        raise DataError(
            f"calibration data {file}: expected {expected}, "
            f"got {tensor.dtype} {tuple(tensor.shape)}"
        )
    # In parts: a copy of all of it could be as large as the file.
    parts = tensor.split(256) if tensor.dim() else (tensor,)
    if tensor.is_floating_point() and not all(bool(part.isfinite().all()) for part in parts):
        raise DataError(f"calibration data {file}: NaN or infinity in input {wanted.name}")


def _split(file: Path, item: Batch, signature: Signature) -> list[Batch]:
    if signature.batch is None:
        return [item]
    lengths = {len(tensor) for tensor in item}
    if len(lengths) != 1:
        raise DataError(
            f"calibration data {file}: the inputs have first axes of different lengths "
            f"{sorted(lengths)}"
        )
    length = lengths.pop()
    whole = length // signature.batch * signature.batch
    if not whole and all(wanted.shape[0] is None for wanted in signature.inputs):
        whole = length  # the program takes fewer, too
    chunks = (tensor[:whole].split(signature.batch) for tensor in item)
    return list(zip(*chunks, strict=True)) if whole else []
