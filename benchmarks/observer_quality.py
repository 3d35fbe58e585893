"""How good the range of the histogram observer is, and how long the search for it takes."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from observer_data import DATA, Raw
from torch import Tensor
from torchao.quantization.pt2e.observer import HistogramObserver as PeerObserver

from pt2q.numerics.rounding import round_trip
from pt2q.numerics.sqnr import sqnr
from pt2q.observers import HistogramObserver, batched_qparams

SIZES = ((64, 1), (64, 8), (1000, 1), (4096, 3), (20_000, 1), (100_000, 1), (100_000, 4),
         (1_000_000, 1), (1_000_000, 3))  # fmt: skip
TYPES: dict[str, tuple[torch.dtype, int, int, torch.qscheme]] = {
    "int8": (torch.int8, -128, 127, torch.per_tensor_affine),
    "uint8": (torch.uint8, 0, 255, torch.per_tensor_affine),
    "int8 sym": (torch.int8, -128, 127, torch.per_tensor_symmetric),
    "4 bit": (torch.int8, -8, 7, torch.per_tensor_affine),
    "4 bit u": (torch.uint8, 0, 15, torch.per_tensor_affine),
    "4 bit sym": (torch.int8, -8, 7, torch.per_tensor_symmetric),
}
SIDES = {"ours": HistogramObserver, "peer": PeerObserver}


def _search(observer: Any) -> tuple[float, int, float]:
    start = time.thread_time()
    scale, point = observer.calculate_qparams()
    return float(scale), int(point), 1e3 * (time.thread_time() - start)


def quality_case(data: str, size: int, batches: int) -> list[dict[str, Any]]:
    """A row per type: decibels of both sides and of the best grid, milliseconds of the search."""
    torch.manual_seed(size + batches)
    seen = [DATA[data](torch.randn(size)) for _ in range(batches)]
    raw, optima, rows = Raw(torch.cat(seen)), {}, []
    for name, (_, low, high, qscheme) in TYPES.items():
        key = (high - low, qscheme)
        if key not in optima:
            optima[key] = raw.most_decibels(low, high, qscheme == torch.per_tensor_symmetric)
        row: dict[str, Any] = dict(data=data, size=size, batches=batches, type=name)
        for side in SIDES:
            row |= observed_by(side, name, seen)
        rows.append(row | {"best": optima[key]})
    return rows


def observed_by(side: str, type_name: str, seen: list[Tensor]) -> dict[str, float]:
    """Decibels on the observed data, and how long the search took."""
    dtype, low, high, qscheme = TYPES[type_name]
    observer = SIDES[side](dtype=dtype, quant_min=low, quant_max=high, qscheme=qscheme)
    for batch in seen:
        observer(batch)
    scale, point, milliseconds = _search(observer)
    x = torch.cat(seen)
    decibels = float(sqnr(x, round_trip(x, scale, point, low, high, dtype)))
    return {f"{side}_ms": milliseconds, side: decibels}


def quality() -> list[dict[str, Any]]:
    """All data, sizes and types."""
    rows = []
    for data in DATA:
        for size, batches in SIZES:
            rows += quality_case(data, size, batches)
            print(_quality_line(rows[-len(TYPES) :]), flush=True)
    _print_summary(rows)
    return rows


def _print_summary(rows: list[dict[str, Any]]) -> None:
    lead = [row["ours"] - row["peer"] for row in rows]
    short = sorted(row["best"] - row["ours"] for row in rows)
    print(
        f"{len(rows)} cases. Over the peer, dB: least {min(lead):+.2f}, "
        f"mean {statistics.mean(lead):+.2f}. Below the optimum, dB: most {short[-1]:.2f}, "
        f"mean {statistics.mean(short):.2f}, more than 0.3 in {sum(s > 0.3 for s in short)}."
    )
    for side in SIDES:
        times = [row[f"{side}_ms"] for row in rows]
        print(f"search {side}: median {statistics.median(times):.2f} ms, most {max(times):.2f} ms")


def _quality_line(rows: list[dict[str, Any]]) -> str:
    first = rows[0]
    cells = [
        f"{row['type']} {row['ours']:.2f} {row['ours'] - row['peer']:+.2f} "
        f"{row['ours'] - row['best']:+.2f}"
        for row in rows
    ]
    return f"{first['data']:15s} {first['size']:>7d}x{first['batches']} | " + " | ".join(cells)


def batch_search(count: int = 64) -> dict[str, float]:
    """Milliseconds for each observer when many are searched together."""
    found = {}
    for name, (dtype, low, high, qscheme) in TYPES.items():
        observers = []
        for seed in range(count):
            torch.manual_seed(seed)
            observer = HistogramObserver(
                dtype=dtype, quant_min=low, quant_max=high, qscheme=qscheme
            )
            observer(torch.randn(50_000))
            observers.append(observer)
        batched_qparams(observers)
        start = time.thread_time()
        batched_qparams(observers)
        found[name] = 1e3 * (time.thread_time() - start) / count
        print(f"search of {count} together, {name}: {found[name]:.2f} ms each")
    return found
