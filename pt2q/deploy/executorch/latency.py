"""How long a program takes beside another."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

from torch import Tensor

from pt2q.deploy.executorch.runtime import LoadedProgram


def measure_latency(
    a: LoadedProgram, b: LoadedProgram, inputs: Sequence[Tensor], repeats: int = 50
) -> tuple[float, float]:
    """Median time of one run of each program, in milliseconds.

    The runs alternate, and so does which program goes first, so that a busy machine slows both
    alike. Trust the ratio more than the times.

    Args:
        a: the first program.
        b: the second program; it takes the same inputs.
        inputs: what both are called with.
        repeats: runs of each program, after a few that are not counted.
    """
    pair = (a.method(), b.method())
    for _ in range(3):
        for method in pair:
            method(*inputs)
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats):
        for which in (0, 1) if turn % 2 == 0 else (1, 0):
            start = time.perf_counter()
            pair[which](*inputs)
            times[which].append(time.perf_counter() - start)
    return 1e3 * statistics.median(times[0]), 1e3 * statistics.median(times[1])
