"""Calibration on two processes against one, one thread each: `python benchmarks/distributed.py`.

The network is a stack of convolutions on images of 96 by 96, 32 batches of it. Each run is a
process or two of its own, and times `pt2q.distributed.calibrate` from one barrier to the next;
runs of one and of two processes take turns. The ratio of the medians is the throughput gained.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from pt2q import prepare_pt2e
from pt2q.distributed import calibrate
from pt2q.quantizers import XNNPACKQuantizer

RESULTS = Path(__file__).with_name("results") / "distributed.json"
BATCHES, SIZE = 32, (4, 3, 96, 96)


def network() -> nn.Module:
    torch.manual_seed(0)
    widths = [3, 32, 64, 64, 128, 128]
    layers: list[nn.Module] = []
    for one, other in pairwise(widths):
        layers += [nn.Conv2d(one, other, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers).eval()


def run(rank: int, size: int, folder: str) -> None:
    """Calibrate as one of several; the first leaves how many seconds it took."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(SIZE, generator=generator) for _ in range(BATCHES)]
    prepared = prepare_pt2e(torch.export.export(network(), (batches[0],)), XNNPACKQuantizer())
    prepared(batches[0])  # kernels are chosen at the first call
    for observer in prepared.modules():
        if hasattr(observer, "reset"):
            observer.reset()
    dist.barrier()
    start = time.perf_counter()
    calibrate(prepared, batches)
    dist.barrier()
    if rank == 0:
        Path(folder, "seconds").write_text(str(time.perf_counter() - start))
    dist.destroy_process_group()


def seconds(size: int) -> float:
    """What one run by so many processes takes."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(run, (size, folder), nprocs=size)
        return float(Path(folder, "seconds").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="runs of each kind")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the file for the figures")
    chosen = parser.parse_args()
    found: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(chosen.runs):
        for size in found:
            found[size].append(seconds(size))
    ratio = statistics.median(found[1]) / statistics.median(found[2])
    result = {
        "batches": BATCHES,
        "cores": os.cpu_count(),
        "seconds": {str(size): times for size, times in found.items()},
        "ratio": ratio,
    }
    chosen.out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"two processes calibrate {ratio:.2f} times as fast as one")


if __name__ == "__main__":
    main()
