"""Figures of a file: against the float program, and against the converted model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule

from pt2q.app.data.failing import failing
from pt2q.deploy.agreement import AGREES, MARGIN, with_own_state
from pt2q.deploy.backend import Run
from pt2q.deploy.signature import Batch, Signature, signature_of
from pt2q.ir.torch_private import pytree
from pt2q.numerics.sqnr import sqnr


@dataclass(frozen=True)
class Figures:
    """What was measured on held-out data, in decibels of signal to noise.

    Attributes:
        file: what runs from the file, against the float program.
        converted: the converted model in PyTorch, against the float program.
        agreement: what runs from the file, against the converted model.
    """

    file: float
    converted: float
    agreement: float

    @property
    def agrees(self) -> bool:
        """Whether the file computes what the converted model does, but for roundings."""
        least = min(AGREES, self.converted - MARGIN)
        return not self.agreement < least  # NaN: there is nothing to compare


@dataclass(frozen=True)
class References:
    """What a file's results are compared with, on the same batches.

    Attributes:
        exact: the floating-point results of the float program, batch by batch, flat.
        rounded: those of the converted model.
        places: which of the outputs they are.
    """

    exact: tuple[Tensor, ...]
    rounded: tuple[Tensor, ...]
    places: tuple[int, ...]

    @classmethod
    def of(
        cls,
        program: ExportedProgram,
        converted: GraphModule,
        signature: Signature,
        batches: Iterable[Batch],
    ) -> References:
        """Run both.

        Args:
            program: the float program.
            converted: what it was converted to. The state of both stays as it is.
            signature: how they are called.
            batches: held out.
        """
        exact_run, rounded_run = (
            in_pytorch(with_own_state(module), signature)
            for module in (program.module(check_guards=False), converted)
        )

        def results() -> Iterator[tuple[Sequence[Any], Sequence[Any]]]:
            for number, batch in enumerate(batches, 1):
                with failing("held-out data", number):
                    values = exact_run(own(batch))
                yield values, rounded_run(own(batch))

        return cls.between(results())

    @classmethod
    def between(cls, results: Iterable[tuple[Sequence[Any], Sequence[Any]]]) -> References:
        """Keep what both gave.

        Args:
            results: of the float program and the converted model, batch by batch, flat.
        """
        exact: list[Tensor] = []
        rounded: list[Tensor] = []
        places: tuple[int, ...] = ()
        for values, others in results:
            places = tuple(i for i, value in enumerate(values) if _is_floating(value))
            exact += _flat(values, places)
            rounded += _flat(others, places)
        return cls(tuple(exact), tuple(rounded), places)

    @property
    def converted(self) -> float:
        """Decibels of the converted model against float; NaN where nothing is floating-point."""
        return _decibels(self.exact, self.rounded)

    def figures(self, file: Run, batches: Iterable[Batch]) -> Figures:
        """Run what was written on the same batches.

        Args:
            file: runs it.
            batches: those of `of`.
        """
        ran: list[Tensor] = []
        for batch in batches:
            ran += _flat(list(file(own(batch))), self.places)
        return Figures(_decibels(self.exact, ran), self.converted, _decibels(self.rounded, ran))


def own(batch: Batch) -> Batch:
    """A copy of a batch, which a model may write into."""
    return tuple(x.clone() for x in batch)


def tried(program: ExportedProgram, batches: Iterable[Batch]) -> Iterator[Batch]:
    """Batches that the float program has been run on, for what then looks into it.

    Args:
        program: it is not changed.
        batches: to measure on.

    Raises:
        DataError: it fails on one of them.
    """
    run = in_pytorch(with_own_state(program.module(check_guards=False)), signature_of(program))
    for number, batch in enumerate(batches, 1):
        with failing("data to measure on", number):
            run(own(batch))
        yield batch


def _is_floating(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _flat(values: Sequence[Any], places: Iterable[int]) -> list[Tensor]:
    return [values[place].detach().flatten().float() for place in places]


def _decibels(exact: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    return float(sqnr(torch.cat(list(exact)), torch.cat(list(found)))) if exact else float("nan")


def in_pytorch(module: Callable[..., Any], signature: Signature) -> Run:
    """Runs a module in this process.

    Args:
        module: an exported or converted one.
        signature: how it is called.
    """

    def run(batch: Batch) -> Sequence[Any]:
        args, kwargs = signature.call(batch)
        with torch.no_grad():
            return list(pytree.tree_leaves(module(*args, **kwargs)))

    return run
