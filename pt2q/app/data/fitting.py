"""Whether data fits the inputs of a model, and how it is cut into calls."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pt2q.app.data.source import Source
from pt2q.deploy.signature import Batch, Input, Signature
from pt2q.errors import DataError, DataOrderWarning


class Column(Protocol):
    """The values of one input for one call or many, in memory or not."""

    @property
    def dtype(self) -> torch.dtype:
        """Of its elements."""
        ...

    @property
    def shape(self) -> Sequence[int]:
        """Its sizes; rows of the first axis are split into calls."""
        ...

    def __getitem__(self, rows: slice, /) -> Tensor:
        """Some rows; all of it for a slice without ends."""
        ...


@dataclass(frozen=True)
class Item(Source):
    """The columns of all inputs, and how many calls they make.

    Args:
        where: what they were read from, as messages say it.
        columns: in the order of the inputs.
        signature: of the model.
        rows: of one call; None where the columns are one call as they are.
        calls: how many.
    """

    where: str
    columns: tuple[Column, ...]
    signature: Signature
    rows: int | None
    calls: int

    def __len__(self) -> int:
        return self.calls

    def read(self, numbers: Sequence[int]) -> Iterator[Batch]:
        """See `Source.read`."""
        return map(self.call, numbers)

    def call(self, number: int) -> Batch:
        """Read one call.

        Args:
            number: which.

        Raises:
            DataError: its values are NaN or infinite.
        """
        rows = slice(None)
        if self.rows is not None:
            rows = slice(number * self.rows, (number + 1) * self.rows)
        batch = tuple(column[rows] for column in self.columns)
        for wanted, tensor in zip(self.signature.inputs, batch, strict=True):
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise DataError(
                    f"{self.where}: NaN or infinity in input {wanted.name}, call {number + 1} of "
                    f"{self.calls}: mend or leave out that sample"
                )
        return batch


def fitted(where: str, given: Any, signature: Signature, in_order: bool) -> Item:
    """Data as columns in the order of the inputs, checked as far as that needs no values.

    Args:
        where: what it was read from.
        given: a tensor or another column, a tuple of them in the order of the inputs, or a dict by
            their names.
        signature: of the model.
        in_order: columns whose names are none of the inputs' are taken in order.

    Raises:
        DataError: it does not fit.
    """
    names = [wanted.name for wanted in signature.inputs]
    if isinstance(given, Mapping):
        given = _by_name(where, given, names, in_order)
    columns = given if isinstance(given, tuple) else (given,)
    others = [type(column).__name__ for column in columns if not _is_column(column)]
    if others:
        raise DataError(f"{where}: expected tensors, got {others[0]}")
    if len(columns) != len(names):
        raise DataError(
            f"{where}: the model takes {len(names)} input(s) {names}, got {len(columns)}"
        )
    plain = tuple(_plain(where, column) for column in columns)
    for wanted, column in zip(signature.inputs, plain, strict=True):
        _check(where, wanted, column, signature.batch)
    rows, calls = _calls(where, plain, signature)
    return Item(where, plain, signature, rows, calls)


def _is_column(value: Any) -> bool:
    return isinstance(getattr(value, "dtype", None), torch.dtype)


def _plain(where: str, column: Any) -> Any:
    """A column with values of its own, laid out in strides.

    Raises:
        DataError: it is a tensor of another kind.
    """
    if not isinstance(column, Tensor):
        return column
    kinds = ("is_sparse", "is_nested", "is_meta", "is_quantized", "is_mkldnn")
    kind = next((k for k in kinds if getattr(column, k)), "")
    if kind or column.layout is not torch.strided or type(column) not in (Tensor, nn.Parameter):
        what = kind.removeprefix("is_") or str(column.layout)
        raise DataError(
            f"{where}: holds a {what} tensor; write ordinary ones with their values, such as "
            "x.to_dense() of a sparse one"
        )
    return column.detach()


def _by_name(
    where: str, item: Mapping[str, Any], names: list[str], in_order: bool
) -> tuple[Any, ...]:
    """The values of a mapping in the order of names, or in their own where none is an input's."""
    if set(item) == set(names):
        return tuple(item[name] for name in names)
    if not in_order or set(item) & set(names):
        raise DataError(f"{where}: the model's inputs are {names}, got {sorted(map(str, item))}")
    if 1 < len(item) == len(names) and not all(re.fullmatch(r"arr_\d+", name) for name in item):
        pairs = ", ".join(f"{a} for {b}" for a, b in zip(item, names, strict=False))
        warnings.warn(
            f"{where}: none of {list(item)} is an input of the model; taken in "
            f"order: {pairs}. Name them like the inputs, {names}",
            DataOrderWarning,
            stacklevel=2,
        )
    return tuple(item.values())


def _check(where: str, wanted: Input, column: Column, batch: int | None) -> None:
    free = batch is not None  # the first axis may be of any length: it is split
    shape = (None, *wanted.shape[1:]) if free else wanted.shape
    fits = len(column.shape) == len(shape) and all(
        size is None or size == actual for size, actual in zip(shape, column.shape, strict=True)
    )
    if column.dtype != wanted.dtype or not fits:
        expected = Input(wanted.name, wanted.dtype, shape)
        raise DataError(f"{where}: expected {expected}, got {column.dtype} {tuple(column.shape)}")


def _calls(where: str, columns: Sequence[Column], signature: Signature) -> tuple[int | None, int]:
    """How many rows a call has, and how many calls the columns make."""
    if signature.batch is None:
        return None, 1
    lengths = {column.shape[0] for column in columns}
    if len(lengths) != 1:
        raise DataError(
            f"{where}: the inputs have first axes of different lengths {sorted(lengths)}"
        )
    (length,) = lengths
    whole = length // signature.batch
    if not whole and length and all(wanted.shape[0] is None for wanted in signature.inputs):
        return length, 1  # the program takes fewer, too
    return signature.batch, whole
