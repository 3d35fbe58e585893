"""Is this change slower? Two minutes before and after it, with a verdict.

    python benchmarks/quick.py            the first time: measure and keep; then: measure, compare
    python benchmarks/quick.py --keep     measure and keep, whatever was kept before

Each figure is CPU time of one thread over that of a yardstick in the same turn, a copy and a
recompilation of the same graph by torch.fx alone, so that a busy or another machine matters little.
A figure counts as changed when the medians are further apart than both 5 % and twice what single
turns scatter. What was kept lies in build/, which git ignores.
"""

from __future__ import annotations

import argparse
import copy
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import measuring
import torch
from support.nets import NETS, residual_mlp

from pt2q import convert_pt2e, prepare_pt2e, prepare_qat_pt2e
from pt2q.quantizers import XNNPACKQuantizer
from pt2q.quantizers.xnnpack.configs import get_symmetric_quantization_config

KEPT = measuring.ROOT / "build" / "quick.json"
LEAST = 0.05
TURNS = 7
IMPORT = "import torch, time; t = time.process_time(); import pt2q; print(time.process_time() - t)"
Figures = dict[str, list[float]]


def import_seconds() -> float:
    """CPU seconds of ``import pt2q`` on top of ``import torch``, in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-c", IMPORT]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def yardstick(exported: Any) -> None:
    """What any graph transformation has to do: copy the graph, make code of it."""
    module = exported.module(check_guards=False)
    torch.fx.GraphModule(module, copy.deepcopy(module.graph)).recompile()


def steps(exported: Any, inputs: tuple[Any, ...]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The steps from a program to its converted form, each made when the one before is done."""
    state: dict[str, Any] = {}

    def prepare() -> None:
        state["prepared"] = prepare_pt2e(exported, XNNPACKQuantizer())

    def calibrate() -> None:
        with torch.no_grad():
            state["prepared"](*inputs)

    def convert() -> None:
        convert_pt2e(state["prepared"])

    yield from (("prepare", prepare), ("calibrate", calibrate), ("convert", convert))


def for_training(exported: Any, inputs: tuple[Any, ...]) -> Iterator[tuple[str, Any]]:
    """Preparation for training, a step, and the conversion of what was trained."""
    state: dict[str, Any] = {}
    config = get_symmetric_quantization_config(is_qat=True)

    def prepare() -> None:
        state["prepared"] = prepare_qat_pt2e(exported, XNNPACKQuantizer().set_global(config))

    def step() -> None:
        measuring.first(state["prepared"](*inputs)).square().mean().backward()

    def convert() -> None:
        convert_pt2e(state["prepared"])

    yield from (("prepare (QAT)", prepare), ("training step", step), ("convert (QAT)", convert))


def measure(turns: int) -> Figures:
    """Every figure, in yardsticks of its turn."""
    found: Figures = {}
    for name, net in (("mlp_100", residual_mlp(100)), ("mobilenet_v2", NETS["mobilenet_v2"])):
        inputs = net.inputs(1)
        exported = torch.export.export(net.build(0), inputs)
        for turn in range(turns + 1):
            unit, _ = measuring.cpu_seconds(yardstick, exported)
            for kind in (steps, for_training):
                for step, call in kind(exported, inputs):
                    seconds, _ = measuring.cpu_seconds(call)
                    if turn > 0:  # the first warms up
                        found.setdefault(f"{name}: {step}", []).append(seconds / unit)
    found["import pt2q, over torch (s)"] = [import_seconds() for _ in range(turns)]
    return found


def scatter(values: list[float]) -> float:
    """How far single turns lie from their median, as a part of it: the median of that."""
    middle = measuring.median(values)
    return measuring.median([abs(v - middle) for v in values]) / middle


def verdict(before: list[float], after: list[float]) -> tuple[float, str]:
    """How many times as long it takes now, and what to think of that."""
    ratio = measuring.median(after) / measuring.median(before)
    bound = max(LEAST, 2 * max(scatter(before), scatter(after)))
    if ratio > 1 + bound:
        return ratio, "SLOWER"
    return ratio, "faster" if ratio < 1 / (1 + bound) else "as before"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", action="store_true", help="compare later runs with this one")
    parser.add_argument("--turns", type=int, default=TURNS)
    options = parser.parse_args()
    measuring.set_up()
    before, after = measuring.read_json(KEPT), measure(options.turns)
    slower = 0
    for name, values in after.items():
        line = f"{name:34s} {measuring.median(values):8.2f} (+- {100 * scatter(values):.0f} %)"
        if name in before:
            ratio, word = verdict(before[name], values)
            slower += word == "SLOWER"
            line += f"   {ratio:.2f}x of before: {word}"
        print(line)
    if options.keep or not before:
        measuring.write_json(KEPT, after)
        print(f"kept in {KEPT.relative_to(measuring.ROOT)}: make your change and run this again")
    elif slower:
        sys.exit(f"{slower} of {len(after)} figures are slower than before")
    else:
        print("nothing is slower than before")


if __name__ == "__main__":
    main()
