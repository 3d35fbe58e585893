"""What the benchmarks share: the set-up, clocks, results on disk.

Imported before torch, because OpenMP reads its settings once; after it, `support` is importable.
"""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
sys.path.insert(0, str(ROOT / "tests"))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from pt2q.files import write_bytes  # noqa: E402


def set_up() -> None:
    """One thread, and nothing on the terminal but figures."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)


def cpu_seconds(call: Callable[..., Any], *args: Any) -> tuple[float, Any]:
    """How long a call takes, in CPU seconds of this process, and what it gives."""
    start = time.process_time()
    result = call(*args)
    return time.process_time() - start, result


def in_turn(
    calls: Mapping[str, Callable[[int], Any]], repeats: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """CPU seconds of several calls that are made in turn.

    Args:
        calls: each is given the number of the turn.
        repeats: how many turns count.
        warm_up: how many turns before them do not.
    """
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(warm_up + repeats):
        for name, call in calls.items():
            seconds, _ = cpu_seconds(call, turn)
            if turn >= warm_up:
                samples[name].append(seconds)
    return samples


def median(values: list[float]) -> float:
    """The median; NaN of nothing."""
    return statistics.median(values) if values else float("nan")


def exponent(seconds: Mapping[int, float]) -> float:
    """The slope of log seconds over log size, by least squares; NaN of fewer than three sizes."""
    points = [(math.log(size), math.log(value)) for size, value in seconds.items()]
    if len(points) < 3:
        return math.nan
    mean_x, mean_y = (statistics.fmean(axis) for axis in zip(*points, strict=True))
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points)
    return slope / sum((x - mean_x) ** 2 for x, _ in points)


def first(outputs: Any) -> Tensor:
    """The first tensor of what a model gives."""
    while not isinstance(outputs, Tensor):
        outputs = next(iter(outputs.values())) if isinstance(outputs, dict) else outputs[0]
    return outputs


def versions(*packages: str) -> dict[str, str]:
    """The versions of installed packages, by name."""
    return {name: version(name) for name in packages}


def read_json(path: Path) -> dict[str, Any]:
    """What an earlier run has written; nothing if there was none."""
    return json.loads(path.read_text()) if path.exists() else {}


def write_json(path: Path, found: Any) -> None:
    """Write results, and on what in ``machines.json``; an interrupted run leaves the earlier."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, (json.dumps(found, indent=1) + "\n").encode())
    machines = path.with_name("machines.json")
    known = read_json(machines) | {path.stem: machine()}
    write_bytes(machines, (json.dumps(known, indent=1, sort_keys=True) + "\n").encode())


def machine() -> dict[str, Any]:
    """What is measured on: the processor, its cores, the memory in GiB, the system."""
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(pages / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def markdown_table(head: list[str], rows: list[list[str]], figures: int = 0) -> str:
    """A table of a page.

    Args:
        head: the names of the columns.
        rows: their cells.
        figures: how many columns, the last ones, are aligned at the right.
    """
    align = ["---"] * (len(head) - figures) + ["---:"] * figures
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, align, *rows))
