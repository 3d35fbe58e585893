"""Figures of a file: against the float program, and against the converted model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from pt2q.deploy.backend import Run
from pt2q.deploy.signature import Batch, Signature
from pt2q.ir.model_state import keep_state
from pt2q.ir.module import copy_module
from pt2q.ir.torch_private import pytree
from pt2q.numerics.sqnr import sqnr

AGREES = 25.0
"""Decibels between a converted model and its file beyond which they agree, whatever else."""
MARGIN = 6.0
"""How much less, in decibels, they may agree than the converted model and float do: roundings that
fall the other way make up as much noise as quantizing itself does, and no more."""


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


def measured(
    program: ExportedProgram,
    converted: nn.Module,
    file: Run,
    signature: Signature,
    batches: Iterable[Batch],
) -> Figures:
    """Run all three on the same batches.

    Args:
        program: the float program; its state stays as it is.
        converted: what it was converted to; its state moves on.
        file: runs what was written.
        signature: how they are called.
        batches: held out.
    """
    module = copy_module(program.module(check_guards=False))
    keep_state(module)
    runs = (in_pytorch(module, signature), in_pytorch(converted, signature), file)
    outputs: tuple[list[Tensor], ...] = ([], [], [])
    for batch in batches:
        found = [list(run(tuple(x.clone() for x in batch))) for run in runs]
        for values in zip(*found, strict=True):
            if isinstance(values[0], Tensor) and values[0].is_floating_point():
                for kept, value in zip(outputs, values, strict=True):
                    kept.append(value.detach().flatten().float())
    if not outputs[0]:
        return Figures(*[float("nan")] * 3)
    exact, rounded, ran = map(torch.cat, outputs)
    return Figures(
        *(float(sqnr(a, b)) for a, b in ((exact, ran), (exact, rounded), (rounded, ran)))
    )


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
