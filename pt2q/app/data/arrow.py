"""A folder that `datasets` of Hugging Face wrote: Arrow files, mapped, read call by call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pt2q.app.data.fitting import fitted
from pt2q.app.data.source import Source
from pt2q.deploy.signature import Batch, Signature
from pt2q.errors import DataError
from pt2q.library_output import first_line
from pt2q.optional import optional_modules

_SPLITS, _TABLE = "dataset_dict.json", "dataset_info.json"


def is_dataset(folder: Path) -> bool:
    """Whether `datasets` wrote a folder.

    Args:
        folder: it.
    """
    return (folder / _SPLITS).is_file() or (folder / _TABLE).is_file()


class ArrowFolder(Source):
    """What ``dataset.save_to_disk`` wrote: a row is a sample, a column is an input of its name.

    A row is a call where the inputs share no first axis, or where it has as many axes as they.
    Columns that are no inputs are left alone. Numbers take the type of the input, whole ones of
    whole ones.

    Args:
        folder: the folder.
        signature: of the model.

    Raises:
        DataError: it is not readable, or does not fit.
        MissingDependencyError: `datasets` is not installed.
    """

    def __init__(self, folder: Path, signature: Signature) -> None:
        self.where, self.signature = f"calibration data {folder}", signature
        self.table = _loaded(folder, self.where, [wanted.name for wanted in signature.inputs])
        self.rows = 0  # of one call; 0 where a row is one
        if len(self.table) and signature.batch is not None:
            first = self._column(self.table[:1], signature.inputs[0].name, f"{self.where}, row 0")
            is_call = first.dim() == len(signature.inputs[0].shape) + 1
            self.rows = 0 if is_call else min(signature.batch, self._fewest())
        next(self.read(range(min(len(self), 1))), None)

    def _fewest(self) -> int:
        """How many rows a call has at least where the program takes fewer than it was given."""
        assert self.signature.batch is not None
        free = all(wanted.shape[0] is None for wanted in self.signature.inputs)
        return len(self.table) if free else self.signature.batch

    def __len__(self) -> int:
        return len(self.table) // (self.rows or 1)

    def read(self, numbers: Sequence[int]) -> Iterator[Batch]:
        """See `Source.read`."""
        size = self.rows or 1
        for number in numbers:
            start = number * size
            part = self.table[start : start + size]
            where = f"{self.where}, row {start}"
            item = fitted(where, self._columns(part, where), self.signature, in_order=False)
            if len(item) != 1:
                raise DataError(f"{where}: it makes {len(item)} calls of the model, expected one")
            yield item.call(0)

    def _columns(self, part: Any, where: str) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for wanted in self.signature.inputs:
            values = self._column(part, wanted.name, where)
            found[wanted.name] = _typed(values if self.rows else values[0], wanted.dtype)
        return found

    def _column(self, part: Any, name: str, where: str) -> Tensor:
        try:
            return _dense(part.column(name))
        except (ValueError, TypeError, NotImplementedError) as error:
            raise DataError(f"{where}: column {name!r}: {first_line(error)}") from error


def _loaded(folder: Path, where: str, names: list[str]) -> Any:
    """The table of a folder, giving Arrow tables of the columns of these names.

    Raises:
        DataError: it has not all of them.
    """
    (datasets,) = optional_modules("datasets", extra="datasets")
    if (folder / _SPLITS).is_file():
        splits = sorted(p.name for p in folder.iterdir() if p.is_dir() and is_dataset(p))
        raise DataError(f"{where}: expected one split, found {splits}: give {folder}/NAME")
    try:
        table = datasets.load_from_disk(str(folder))
    except Exception as error:
        raise DataError(f"{where}: not readable: {first_line(error)}") from error
    if not set(names) <= set(table.column_names):
        raise DataError(
            f"{where}: the model's inputs are {names}, the columns {table.column_names}: name them "
            "like the inputs, with dataset.rename_column"
        )
    return table.with_format("arrow", columns=names)


def _dense(column: Any) -> Tensor:
    """Numbers, nested to any depth, as a tensor; the first axis is that of the rows.

    Raises:
        ValueError: rows differ in length, or numbers are missing.
        TypeError: it holds something else.
    """
    array, sizes = column.combine_chunks(), [len(column)]
    while True:
        array = getattr(array, "storage", array)  # of an extension, such as an array of two axes
        if array.null_count:
            raise ValueError("values are missing")
        if not hasattr(array, "value_lengths"):
            break
        lengths = set(array.value_lengths().to_pylist())
        if len(lengths) > 1:
            raise ValueError(f"rows differ in length: {sorted(lengths)[:4]}")
        sizes.append(lengths.pop() if lengths else 0)
        array = array.flatten()
    return torch.from_numpy(array.to_numpy(zero_copy_only=False).copy()).reshape(sizes)


def _typed(values: Tensor, dtype: torch.dtype) -> Tensor:
    return values.to(dtype) if _kind(values.dtype) == _kind(dtype) else values


def _kind(dtype: torch.dtype) -> str:
    if dtype is torch.bool or dtype.is_complex:
        return str(dtype)
    return "float" if dtype.is_floating_point else "int"
