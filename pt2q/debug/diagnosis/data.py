"""Whether calibration data is like the data that the model is judged on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pt2q.debug.diagnosis.findings import Finding
from pt2q.ir.module import QuantGraphModule
from pt2q.ir.module.batch_call import placed

FEW = 4
"""Fewer batches than this may be too few."""


def calibration_findings(
    model: QuantGraphModule, calibration: Sequence[Any], held_out: Sequence[Any]
) -> list[Finding]:
    """What is odd about calibration data, whether it matters or not.

    Args:
        model: the prepared model.
        calibration: its batches; none says nothing.
        held_out: batches to compare with.
    """
    if not calibration or not held_out:
        return []
    seen, wanted = _inputs(model, calibration), _inputs(model, held_out)
    names = tuple(seen)
    found = [_unlike(name, seen[name], wanted[name]) for name in seen]
    repeated = all(len({_key(t) for t in tensors}) == 1 for tensors in seen.values())
    if repeated and len(calibration) > 1:
        words = f"all {len(calibration)} batches of calibration are equal"
        found.append(Finding("one sample repeated", names, (), words, 0.0))
    elif len(calibration) < FEW:
        words = f"{len(calibration)} batch(es) of calibration"
        found.append(Finding("calibration data too few", names, (), words, 0.0))
    return [finding for finding in found if finding is not None]


def _inputs(model: QuantGraphModule, batches: Sequence[Any]) -> dict[str, list[Tensor]]:
    found: dict[str, list[Tensor]] = {}
    for batch in batches:
        for node, value in placed(model, batch).items():
            if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
                found.setdefault(node.name, []).append(value.detach().float())
    return found


def _key(tensor: Tensor) -> tuple[float, ...]:
    return (*tensor.shape, float(tensor.sum()), float(tensor.abs().sum()))


def _unlike(name: str, seen: Sequence[Tensor], wanted: Sequence[Tensor]) -> Finding | None:
    """The input's spread or place differs by more than chance makes likely."""
    one, other = (torch.cat([t.flatten() for t in tensors]) for tensors in (seen, wanted))
    ours, theirs = float(one.std(correction=0)), float(other.std(correction=0))
    largest = float(one.abs().max()), float(other.abs().max())
    ratio = _ratio(ours, theirs), _ratio(*largest)
    shift = abs(float(one.mean()) - float(other.mean())) / max(theirs, 1e-30)
    if ratio[0] < 1.5 and ratio[1] < 3 and shift < 0.5:
        return None
    words = (
        f"standard deviation {ours:.3g} against {theirs:.3g} held out, largest "
        f"{largest[0]:.3g} against {largest[1]:.3g}, mean apart by {shift:.2f} deviations"
    )
    return Finding("calibration data unlike the held-out data", (name,), (), words, 0.0)


def _ratio(one: float, other: float) -> float:
    low, high = sorted((one, other))
    return high / low if low > 0 else (1.0 if high == 0 else float("inf"))
