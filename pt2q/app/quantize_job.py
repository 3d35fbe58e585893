"""The command line's job: calibrate, convert, lower and compare, from one exported program."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from pt2q.app.calibration import Batch, Signature, signature_of
from pt2q.app.recipe import Recipe
from pt2q.app.targets import BACKENDS, Backend, Deployed, Example, Run
from pt2q.debug import Comparison, compare
from pt2q.errors import DataError
from pt2q.flow import convert_pt2e, prepare_pt2e
from pt2q.ir.module import QuantGraphModule
from pt2q.numerics.sqnr import sqnr

Track = Callable[[Sequence[Batch], str], Iterable[Batch]]


@dataclass(frozen=True)
class Outcome:
    """What came out.

    Attributes:
        deployed: the quantized model, written.
        report: the quantizer's account, operator by operator.
        float_size: bytes of the float model, written the same way, or of its tensors.
        calibrated: number of batches that were calibrated on.
        held_out: number of batches that were kept for the comparison.
        sqnr: decibels of the quantized model's output against the float model's.
    """

    deployed: Deployed
    report: Any
    float_size: int
    calibrated: int
    held_out: int
    sqnr: float


def run_job(
    program: ExportedProgram,
    batches: Sequence[Batch],
    recipe: Recipe,
    track: Track,
    out: Path,
    show: Callable[[Any], None] | None = None,
) -> Outcome:
    """Quantize an exported program, write it for its backend and compare it with float.

    Args:
        program: the float model.
        batches: calibration data; the last tenth (at least one batch) is held out.
        recipe: for which backend, and how.
        track: wraps a loop over batches to show its progress under a title.
        out: the file to write.
        show: is given the quantizer's report before anything can fail that it may explain.
    """
    signature = signature_of(program)
    backend, quantizer = BACKENDS[recipe.backend], recipe.quantizer()
    calibration, held_out = split_off(batches)
    calibration = calibration[: recipe.limit]
    converted = _convert(program, signature, quantizer, calibration, track, show)
    example = Example(signature, calibration[0], dynamic_shapes(program, signature))
    deployed = backend.deploy(converted, example, out)
    with tempfile.TemporaryDirectory() as folder:
        reference, float_size = _float(program, backend, example, Path(folder))
        decibels = _compare(reference, deployed.run, track(held_out, "comparing"))
    return Outcome(
        deployed, quantizer.report(), float_size, len(calibration), len(held_out), decibels
    )


def _convert(
    program: ExportedProgram,
    signature: Signature,
    quantizer: Any,
    calibration: Sequence[Batch],
    track: Track,
    show: Callable[[Any], None] | None = None,
) -> QuantGraphModule:
    prepared = prepare_pt2e(program, quantizer)
    if show is not None:
        show(quantizer.report())
    with torch.no_grad():
        for batch in track(calibration, "calibrating"):
            args, kwargs = signature.call(batch)
            prepared(*args, **kwargs)
    return convert_pt2e(prepared)


def run_comparison(
    program: ExportedProgram, batches: Sequence[Batch], recipe: Recipe, track: Track
) -> Comparison:
    """Quantize an exported program and say, operator by operator, where it departs from float.

    Args:
        program: the float model.
        batches: calibration data; the last tenth (at least one batch) is compared on.
        recipe: for which backend, and how.
        track: wraps a loop over batches to show its progress under a title.
    """
    signature = signature_of(program)
    calibration, held_out = split_off(batches)
    calibration = calibration[: recipe.limit]
    converted = _convert(program, signature, recipe.quantizer(), calibration, track)
    module = program.module(check_guards=False)
    names = [node.name for node in module.graph.nodes if node.op == "placeholder"]
    inputs = (
        dict(zip(names, signature.leaves(batch), strict=True))
        for batch in track(held_out, "comparing")
    )
    return compare(program, converted, inputs)


def _float(
    program: ExportedProgram, backend: Backend, example: Example, folder: Path
) -> tuple[Run, int]:
    """What runs the float model, and its size."""
    if backend.deploys_float:
        deployed = backend.deploy(program, example, folder / f"float{backend.suffix}")
        return deployed.run, deployed.size
    module = program.module(check_guards=False)

    def run(batch: Batch) -> Sequence[Any]:
        args, kwargs = example.signature.call(batch)
        with torch.no_grad():
            return list(pytree.tree_leaves(module(*args, **kwargs)))

    tensors = [*program.state_dict.values(), *program.constants.values()]
    return run, sum(t.nbytes for t in tensors if isinstance(t, Tensor))


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


def _compare(reference: Run, other: Run, batches: Iterable[Batch]) -> float:
    """SQNR over all floating-point outputs of all batches."""
    pairs = [
        (a.flatten(), b.flatten())
        for batch in batches
        for a, b in zip(reference(batch), other(batch), strict=True)
        if isinstance(a, Tensor) and a.is_floating_point()
    ]
    if not pairs:
        return float("nan")
    references, others = zip(*pairs, strict=True)
    return float(sqnr(torch.cat(references), torch.cat(others)))
