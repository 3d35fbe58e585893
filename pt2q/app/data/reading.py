"""Calibration data from files, checked against a model, read when it is needed.

What the data may be:

- `.npz`: arrays named like the model's inputs. Where no name is an input's they are taken in order,
  and a `DataOrderWarning` says so if numpy did not name them (``arr_0``) or there are several.
- `.pt`: a tensor, a tuple of tensors in the order of the inputs, a dict by input name, or a list
  of such things. Read with `weights_only=True`.
- a folder: all its `.npz` and `.pt` files, sorted by name; or one that `datasets` of Hugging Face
  wrote, whose columns are named like the inputs.
- ``FILE.py:FUNCTION``: what the function gives: such things, one after the other.

The first axis of every array is split into batches of the size that the model was exported with;
a rest that does not fill a batch is left out. When the inputs have no first axis in common, each
set of arrays has to be exactly one call of the model.
"""

from __future__ import annotations

import os
import re
from os import PathLike
from pathlib import Path

from pt2q.app.data.arrow import ArrowFolder, is_dataset
from pt2q.app.data.npz import ArrayFile
from pt2q.app.data.source import Batches, Chain, Source
from pt2q.app.data.stream import Stream
from pt2q.app.data.tensor_file import TensorFile
from pt2q.app.function_file import FUNCTION, read_function
from pt2q.deploy.signature import Signature
from pt2q.errors import DataError

_KINDS = {".npz": ArrayFile, ".pt": TensorFile}


def read_batches(
    path: str | PathLike[str], signature: Signature, limit: int | None = None
) -> Batches:
    """Open calibration data as calls of the program; values are read when they are asked for.

    Args:
        path: a file, a folder or ``FILE.py:FUNCTION``.
        signature: of the program.
        limit: the most calls there are to be; nothing behind them is read.

    Raises:
        DataError: a file is missing, unreadable, empty, or does not fit the inputs.
    """
    source = _source(Path(path), signature, limit)
    count = len(source) if limit is None else min(len(source), limit)
    if not count:
        raise DataError(
            f"calibration data {path}: empty, not one batch of {signature.batch or 1} in it"
        )
    return Batches(source, range(count))


def _source(path: Path, signature: Signature, limit: int | None) -> Source:
    if re.fullmatch(FUNCTION, str(path)):
        function = read_function("calibration data", str(path))
        return Stream(f"calibration data {path}", function, signature, limit)
    if not os.path.exists(path):  # unlike that of a path, it takes any name
        raise DataError(f"calibration data {path}: no such file or folder")
    if not path.is_dir():
        return _file(path, signature)
    if is_dataset(path):
        return ArrowFolder(path, signature)
    return _folder(path, signature, limit)


def _file(path: Path, signature: Signature) -> Source:
    if path.suffix not in _KINDS:
        raise DataError(
            f"calibration data {path}: expected .npz, .pt, a folder or FILE.py:FUNCTION, got "
            f"{path.suffix!r}"
        )
    return _KINDS[path.suffix](path, signature)


def _folder(path: Path, signature: Signature, limit: int | None) -> Source:
    """Its files, of which no more are opened than are needed."""
    files = sorted(file for file in path.iterdir() if file.suffix in _KINDS)
    if not files:
        raise DataError(f"calibration data {path}: the folder holds no .npz and no .pt file")
    parts: list[Source] = []
    for file in files:
        if limit is not None and sum(map(len, parts)) >= limit:
            break
        parts.append(_file(file, signature))
    return Chain(tuple(parts))
