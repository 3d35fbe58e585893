"""The demo's job: float network in, two `.pte` files and a comparison of them out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from pt2q.demo.digits import Digits, load_digits
from pt2q.demo.net import load_checkpoint
from pt2q.deploy.executorch import (
    Delegation,
    LoadedProgram,
    Program,
    load,
    lower,
    measure_latency,
)
from pt2q.flow import convert_pt2e, prepare_pt2e
from pt2q.quantizers import XNNPACKQuantizer

Track = Callable[[Sequence[Any], str], Iterable[Any]]

CALIBRATION = 200


@dataclass(frozen=True)
class Side:
    """One of the two programs, as measured through the ExecuTorch runtime.

    Attributes:
        path: the `.pte`.
        size: its bytes.
        accuracy: percent of the held-out digits classified right.
        latency: median milliseconds for one image.
        delegation: what XNNPACK runs of it.
    """

    path: Path
    size: int
    accuracy: float
    latency: float
    delegation: Delegation


@dataclass(frozen=True)
class DemoResult:
    """The comparison.

    Attributes:
        floating: the float program.
        quantized: the int8 program.
        held_out: number of digits that the accuracy was measured on.
    """

    floating: Side
    quantized: Side
    held_out: int


def run_demo(out: Path, track: Track) -> DemoResult:
    """Quantize the bundled network, write both programs, load them from disk and compare them.

    Args:
        out: folder for `digits-float.pte` and `digits-int8.pte`.
        track: wraps a loop to show its progress under a title.
    """
    digits = load_digits()
    programs = build(digits.train[:CALIBRATION], track)
    paths = (
        programs[0].save(out / "digits-float.pte"),
        programs[1].save(out / "digits-int8.pte"),
    )
    loaded = (load(paths[0]), load(paths[1]))
    accuracies = [
        accuracy(program, digits, track, f"running {path.name}")
        for program, path in zip(loaded, paths, strict=True)
    ]
    latencies = measure_latency(*loaded, [digits.held_out[:1]], repeats=300)
    sides = [
        Side(path, path.stat().st_size, right, latency, program.delegation)
        for path, right, latency, program in zip(
            paths, accuracies, latencies, programs, strict=True
        )
    ]
    return DemoResult(sides[0], sides[1], len(digits.held_out))


def build(calibration: Tensor, track: Track) -> tuple[Program, Program]:
    """The float and the int8 program of the bundled network, for one image per call."""
    net = load_checkpoint()
    exported = torch.export.export(net, (calibration[:1],))
    prepared = prepare_pt2e(exported, XNNPACKQuantizer())
    with torch.no_grad():
        for image in track(calibration.split(1), "calibrating"):
            prepared(image)
    converted = convert_pt2e(prepared)
    return lower(exported), lower(converted, (calibration[:1],))


def accuracy(program: LoadedProgram, digits: Digits, track: Track, title: str) -> float:
    """Percent of the held-out digits that a program classifies right."""
    images = track(digits.held_out.split(1), title)
    guesses = torch.stack([program(image)[0].argmax() for image in images])
    return 100.0 * float((guesses == digits.held_out_labels).float().mean())


def table(result: DemoResult) -> Table:
    """The comparison for a terminal."""
    floating, quantized = result.floating, result.quantized
    out = Table(title=f"Handwritten digits, {result.held_out} held out, run by ExecuTorch")
    for name in ("", "float", "int8", "int8 against float"):
        out.add_column(name, justify="left" if not name else "right")
    for cells in _rows(floating, quantized):
        out.add_row(*cells)
    out.caption = f"{floating.path}\n{quantized.path}"
    out.caption_justify = "left"
    return out


def _rows(floating: Side, quantized: Side) -> Iterable[tuple[str, ...]]:
    sides = (floating, quantized)
    points = quantized.accuracy - floating.accuracy
    smaller, faster = floating.size / quantized.size, floating.latency / quantized.latency
    yield "accuracy", *(f"{side.accuracy:.2f} %" for side in sides), f"{points:+.2f} points"
    yield "file size", *(f"{side.size / 1e6:.2f} MB" for side in sides), f"{smaller:.2f}x smaller"
    latencies = (f"{side.latency:.3f} ms" for side in sides)
    yield "one image (median)", *latencies, f"{faster:.2f}x faster"
    yield "runs on XNNPACK", *(_share(side.delegation) for side in sides), ""


def _share(delegation: Delegation) -> str:
    return f"{delegation.delegated} of {delegation.delegated + delegation.left} ops"
