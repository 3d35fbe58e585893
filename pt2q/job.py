"""The command line's job: calibrate, convert, lower and compare, from one exported program."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from pt2q.data import Batch, Signature, signature_of
from pt2q.deploy.executorch import Delegation, LoadedProgram, Program, lower
from pt2q.errors import DataError
from pt2q.flow import convert_pt2e, prepare_pt2e
from pt2q.numerics import sqnr
from pt2q.quantizers import XNNPACKQuantizer, get_symmetric_quantization_config

Track = Callable[[Sequence[Batch], str], Iterable[Batch]]


@dataclass(frozen=True)
class Options:
    """How to quantize.

    Attributes:
        backend: a key of `BACKENDS`.
        per_tensor: one scale per weight instead of one per output channel.
        dynamic: activation ranges measured at run time instead of by calibration.
        limit: calibrate on at most this many batches.
    """

    backend: str = "xnnpack"
    per_tensor: bool = False
    dynamic: bool = False
    limit: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What came out.

    Attributes:
        program: the quantized program, lowered.
        report: the quantizer's account, operator by operator.
        float_size: bytes of the float program, lowered the same way.
        calibrated: number of batches that were calibrated on.
        held_out: number of batches that were kept for the comparison.
        sqnr: decibels of the quantized program's output against the float program's.
    """

    program: Program
    report: Any
    float_size: int
    calibrated: int
    held_out: int
    sqnr: float

    @property
    def delegation(self) -> Delegation:
        """Who runs what in the quantized program."""
        return self.program.delegation


def _xnnpack(options: Options) -> Any:
    config = get_symmetric_quantization_config(
        is_per_channel=not options.per_tensor, is_dynamic=options.dynamic
    )
    return XNNPACKQuantizer().set_global(config)


BACKENDS: Mapping[str, Callable[[Options], Any]] = {"xnnpack": _xnnpack}


def quantizer_for(options: Options) -> Any:
    """The quantizer of the backend asked for.

    Raises:
        DataError: there is no such backend.
    """
    if options.backend not in BACKENDS:
        raise DataError(f"unknown backend {options.backend!r}: choose from {sorted(BACKENDS)}")
    return BACKENDS[options.backend](options)


def run_job(
    program: ExportedProgram, batches: Sequence[Batch], options: Options, track: Track
) -> Outcome:
    """Quantize an exported program for a backend and compare it with float.

    Args:
        program: the float model.
        batches: calibration data; the last tenth (at least one batch) is held out.
        options: how to quantize.
        track: wraps a loop over batches to show its progress under a title.
    """
    signature = signature_of(program)
    quantizer = quantizer_for(options)
    calibration, held_out = split_off(batches)
    calibration = calibration[: options.limit]
    prepared = prepare_pt2e(program, quantizer)
    with torch.no_grad():
        for batch in track(calibration, "calibrating"):
            args, kwargs = signature.call(batch)
            prepared(*args, **kwargs)
    converted = convert_pt2e(prepared)
    args, kwargs = signature.call(calibration[0])
    shapes = dynamic_shapes(program, signature)
    lowered = lower(converted, args, kwargs=kwargs, dynamic_shapes=shapes)
    reference = lower(program)
    decibels = _compare(reference.load(), lowered.load(), signature, track(held_out, "comparing"))
    return Outcome(
        lowered,
        quantizer.report(),
        len(reference.buffer),
        len(calibration),
        len(held_out),
        decibels,
    )


def split_off(batches: Sequence[Batch]) -> tuple[Sequence[Batch], Sequence[Batch]]:
    """Keep the last tenth, at least one batch and at most 100, for the comparison.

    Raises:
        DataError: there are fewer than two batches.
    """
    if len(batches) < 2:
        raise DataError(
            "calibration data: at least two batches are needed, "
            "one to calibrate on and one held out to compare with float; got one"
        )
    held_out = min(max(len(batches) // 10, 1), 100)
    return batches[:-held_out], batches[-held_out:]


def dynamic_shapes(program: ExportedProgram, signature: Signature) -> Any:
    """The dynamic dimensions of a program, in the form in which export takes them.

    Returns:
        One entry per positional and keyword argument, or None if everything is static.
    """
    if all(None not in item.shape for item in signature.inputs):
        return None
    values = {n.name: n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder"}
    leaves = [_leaf_shape(values[item.name], program) for item in signature.inputs]
    for position, _ in signature.constants:
        leaves.insert(position, None)
    args, kwargs = pytree.tree_unflatten(leaves, signature.spec)
    return (*args, *kwargs.values())


def _leaf_shape(value: Tensor, program: ExportedProgram) -> dict[int, Any] | None:
    shape: dict[int, Any] = {}
    for dim, size in enumerate(value.shape):
        if isinstance(size, int):
            continue
        bounds = program.range_constraints.get(size.node.expr)
        finite = bounds is not None and bounds.is_int and bounds.upper < 2**31
        shape[dim] = Dim.AUTO(min=None, max=int(bounds.upper)) if finite else Dim.AUTO
    return shape or None


def _compare(
    reference: LoadedProgram, other: LoadedProgram, signature: Signature, batches: Iterable[Batch]
) -> float:
    """SQNR over all floating-point outputs of all batches, both run by the runtime."""
    pairs = [
        (a.flatten(), b.flatten())
        for batch in batches
        for a, b in zip(
            reference(*signature.leaves(batch)), other(*signature.leaves(batch)), strict=True
        )
        if isinstance(a, Tensor) and a.is_floating_point()
    ]
    if not pairs:
        return float("nan")
    references, others = zip(*pairs, strict=True)
    return float(sqnr(torch.cat(references), torch.cat(others)))
