"""Processes that calibrate together; a process that is started finds them by name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pt2q import convert_pt2e, disable_fake_quant, prepare_pt2e, prepare_qat_pt2e
from pt2q.distributed import calibrate
from pt2q.ir.module import QuantGraphModule
from pt2q.observers import HistogramObserver, MinMaxObserver, MovingAverageMinMaxObserver
from pt2q.quantizers import XNNPACKQuantizer, get_symmetric_quantization_config

COUNT = 10


class Layers(nn.Module):
    """A convolution wide enough to be sampled, and layers small enough to be kept."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.linear = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.relu(self.conv(x)).mean((2, 3)))


class Largest(MinMaxObserver):
    """An observer of one's own, which says how it is put together by its base class."""


def batch_of(index: int) -> tuple[Tensor]:
    generator = torch.Generator().manual_seed(index)
    return (torch.randn(1, 3, 48, 48, generator=generator) * (1 + index),)


def prepared() -> QuantGraphModule:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Layers().eval()
    return prepare_pt2e(torch.export.export(model, batch_of(0)), XNNPACKQuantizer())


def converted_state(module: QuantGraphModule) -> dict[str, Any]:
    """Everything that a converted module holds, and its text."""
    converted = convert_pt2e(module)
    return {"code": converted.code, **converted.state_dict()}


def calibrate_in_groups(rank: int, folder: str) -> None:
    """Calibrate as one of one, two, three and four; leave what came of each."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=4)
    for size in (1, 2, 3, 4):
        group = dist.new_group(list(range(size)))
        if rank < size:
            module = prepared()
            calibrate(module, [batch_of(i) for i in range(COUNT)], group=group)
            torch.save(converted_state(module), f"{folder}/{size}-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def watched_by(kind: str) -> QuantGraphModule:
    """The layers, prepared with one kind of observer for activations; "trained" only watches."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        program = torch.export.export(Layers().eval(), batch_of(0))
    if kind == "trained":
        config = get_symmetric_quantization_config(is_qat=True)
        made = prepare_qat_pt2e(program, XNNPACKQuantizer().set_global(config))
        return made.eval().apply(disable_fake_quant)
    config = get_symmetric_quantization_config()
    assert config.input_activation is not None
    spec = replace(config.input_activation, observer_or_fake_quant_ctr=ACTIVATIONS[kind])
    config = replace(config, input_activation=spec, output_activation=spec)
    return prepare_pt2e(program, XNNPACKQuantizer().set_global(config))


ACTIVATIONS: dict[str, Any] = {
    "histogram": HistogramObserver,
    "extremes": MinMaxObserver,
    "averages": MovingAverageMinMaxObserver,
    "own": Largest,
}
KINDS = (*ACTIVATIONS, "trained")


def watch_in_groups(rank: int, folder: str) -> None:
    """Calibrate with each kind of observer as one of one to four; leave what came of each."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=4)
    for size in (1, 2, 3, 4):
        group = dist.new_group(list(range(size)))
        for kind in KINDS if rank < size else ():
            module = watched_by(kind)
            calibrate(module, [batch_of(i) for i in range(COUNT)], group=group)
            torch.save(converted_state(module), f"{folder}/{kind}-{size}-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def stopping_at(stop: int) -> Iterator[tuple[Tensor]]:
    """Batches, the last of which is never given: the process is killed there."""
    for index in range(COUNT):
        if index == stop:
            os._exit(9)
        yield batch_of(index)


def die_on_the_way(rank: int, folder: str, stop: int, resume: bool) -> None:
    """Calibrate as one of two; the second dies at a batch, and the first says what it learns."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store-{stop}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    module = prepared()
    data: Any = stopping_at(stop) if rank == 1 else [batch_of(i) for i in range(COUNT)]
    try:
        calibrate(module, data, resume=f"{folder}/kept" if resume else None)
    except Exception as error:
        torch.save(f"{type(error).__name__}: {error}", f"{folder}/said-{rank}.pt")
        return
    torch.save(converted_state(module), f"{folder}/resumed-{rank}.pt")
    dist.destroy_process_group()
