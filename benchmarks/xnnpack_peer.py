"""The int8 programs of both stacks beside each other in the ExecuTorch runtime, net by net.

    python benchmarks/xnnpack_peer.py                     all networks
    python benchmarks/xnnpack_peer.py --build             only make the programs that are missing
    python benchmarks/xnnpack_peer.py --missing           only time programs that were not timed
    python benchmarks/xnnpack_peer.py --models minilm vit_s16

Both stacks quantize the same exported program with their own XNNPACK quantizer in the same
setting, static int8 with a scale per output channel, from the same batches, and both are lowered.
Counted are delegated blobs, operators that portable kernels run, and quantizes and dequantizes
among them. Then both files run in turn in one process; of each the median and the least time is
kept. Quality is the SQNR of what the runtime gives against the float model on batches held out.
Making all programs takes about 20 minutes, on a machine that may be busy; they are kept until what
they are made of changes. Timing them takes 3, on one that is not. Raw figures go to
``benchmarks/results/xnnpack_peer.json``, the table to ``docs/xnnpack_peer.md``, after each network.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from typing import Any

import measuring
import torch
from measuring import markdown_table
from peer_programs import MODELS, STACKS, made, made_of, path_of
from torch import Tensor

from pt2q.deploy import executorch

RESULT = measuring.RESULTS / "xnnpack_peer.json"
PAGE = measuring.ROOT / "docs" / "xnnpack_peer.md"
SECONDS, LEAST_RUNS, MOST_RUNS = 4.0, 40, 400
"""Runs of a network go on for so long, within bounds."""


def times(loaded: Sequence[Any], args: tuple[Tensor, ...]) -> list[list[float]]:
    """Milliseconds of runs of several programs, in turn; each comes first as often."""
    found: list[list[float]] = [[] for _ in loaded]
    end = time.perf_counter() + SECONDS
    for turn in range(-3, MOST_RUNS):
        if turn >= LEAST_RUNS and time.perf_counter() > end:
            break
        for place in range(len(loaded)):
            which = (place + turn) % len(loaded)
            start = time.perf_counter()
            loaded[which](*args)
            if turn >= 0:
                found[which].append(1e3 * (time.perf_counter() - start))
    return found


def compare(name: str) -> dict[str, Any]:
    """The figures of both stacks for a network; of one that fails, what it says."""
    found = made(name)
    runs = [stack for stack in STACKS if "fails" not in found[stack]]
    loaded = [executorch.load(path_of(name, f"{stack}.pte")).method() for stack in runs]
    for stack, taken in zip(runs, times(loaded, torch.load(path_of(name, "inputs"))), strict=True):
        found[stack] |= {"median_ms": statistics.median(taken), "least_ms": min(taken)}
    return found


def is_measured(found: dict[str, Any]) -> bool:
    """Whether figures are of the programs that would be made now."""
    return all(found.get(stack, {}).get("made_of") == made_of(stack) for stack in STACKS)


INTRODUCTION = """# XNNPACK beside the other stack

Made by `python benchmarks/xnnpack_peer.py`: the same exported programs, quantized by each stack
with its own XNNPACK quantizer in the same setting (static int8, a scale per output channel) from
the same batches, and lowered. The other stack is ExecuTorch's `XNNPACKQuantizer` with `torchao`'s
flow. *Blobs* are the pieces that XNNPACK runs, *left* the operators that portable kernels run,
*nodes* what XNNPACK runs, in brackets those that quantize or dequantize. Both programs run in turn
in one process of one thread; times are the least of {least} to {most} runs, in milliseconds, and
the ratio is ours by theirs. SQNR in dB is that of what the runtime gives against the float model,
on held-out batches; weights are random where nothing is shipped.

"""


def page(results: dict[str, Any]) -> str:
    pairs = ("blobs", "nodes", "left", "dB", "ms")
    head = ["network", *(cell for name in pairs for cell in (name, "theirs")), "ratio"]
    rows = [_cells(name, found) for name, found in results.items()]
    ratios = [_ratio(found) for found in results.values() if not _fails(found)]
    last = (
        f"\nOf {len(ratios)} networks that both stacks lower, ours is at most as slow on "
        f"{sum(ratio <= 1 for ratio in ratios)} and within 5 % on "
        f"{sum(ratio <= 1.05 for ratio in ratios)}; the median of the ratios is "
        f"{statistics.median(ratios):.2f}, the largest {max(ratios):.2f}. The other stack fails on "
        f"{len(results) - len(ratios)}.\n"
    )
    return (
        INTRODUCTION.format(least=LEAST_RUNS, most=MOST_RUNS)
        + markdown_table(head, rows)
        + "\n"
        + last
    )


def _fails(found: dict[str, Any]) -> bool:
    return any("fails" in one for one in found.values())


def _ratio(found: dict[str, Any]) -> float:
    return float(found["pt2q"]["least_ms"] / found["peer"]["least_ms"])


def _cells(name: str, found: dict[str, Any]) -> list[str]:
    ours, theirs = _column(found["pt2q"]), _column(found["peer"])
    cells = [cell for pair in zip(ours, theirs, strict=True) for cell in pair]
    return [name, *cells, "" if _fails(found) else f"{_ratio(found):.2f}"]


def _column(one: dict[str, Any]) -> list[str]:
    if "fails" in one:
        return ["fails", "", "", "", ""]
    nodes = f"{one['nodes']} ({one['converts']})"
    left = f"{one['left']} ({one['rounding_left']})"
    return [str(one["blobs"]), nodes, left, f"{one['db']:.1f}", f"{one['least_ms']:.3g}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--build", action="store_true", help="only make programs")
    parser.add_argument("--missing", action="store_true", help="leave out what was timed as it is")
    options = parser.parse_args()
    measuring.set_up()
    # Of the networks that are not asked for, what was measured last stays.
    found = measuring.read_json(RESULT)
    for name in options.models:
        if options.build:
            made(name)
            print(name, flush=True)
        elif not (options.missing and is_measured(found.get(name, {}))):
            found[name] = compare(name)
            print(name, json.dumps(found[name]), flush=True)
            results = {name: found[name] for name in MODELS if name in found}
            measuring.write_json(RESULT, results)
            PAGE.write_text(page(results))


if __name__ == "__main__":
    main()
