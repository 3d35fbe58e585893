"""Processes that calibrate together; a process that is started finds them by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pt2q import convert_pt2e, disable_fake_quant, prepare_pt2e, prepare_qat_pt2e
from pt2q.deploy import executorch, onnx
from pt2q.distributed import calibrate
from pt2q.ir.module import QuantGraphModule
from pt2q.observers import (
    FakeQuantize,
    FusedMovingAvgObsFakeQuantize,
    HistogramObserver,
    LearnableFakeQuantize,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver,
)
from pt2q.quantizers import (
    QuantizationConfig,
    WeightQuantizer,
    XNNPACKQuantizer,
    get_dynamic_activation_4bit_weight_config,
    get_symmetric_quantization_config,
)
from pt2q.spec import FixedQParamsQuantizationSpec, Quantizer
from support.small_quantizers import SmallQuantizer

COUNT = 10


class Layers(nn.Module):
    """A convolution wide enough to be sampled, and layers small enough to be kept."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 3, padding=1)
        self.linear = nn.Linear(32, 8)

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


def state_of(converted: QuantGraphModule) -> dict[str, Any]:
    """Everything that a converted module holds, and its text."""
    return {"code": converted.code, **converted.state_dict()}


def converted_state(module: QuantGraphModule) -> dict[str, Any]:
    return state_of(convert_pt2e(module))


def prepared_by(kind: str) -> QuantGraphModule:
    """The layers, prepared with one kind of observer; what is trained only watches."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        program = torch.export.export(Layers().eval(), batch_of(0))
    if kind in TRAINED:
        made = prepare_qat_pt2e(program, XNNPACKQuantizer().set_global(trained_by(kind)))
        return made.eval().apply(disable_fake_quant)
    return prepare_pt2e(program, QUANTIZERS[kind]())


def activations(**changes: Any) -> XNNPACKQuantizer:
    config = get_symmetric_quantization_config()
    assert config.input_activation is not None
    spec = replace(config.input_activation, **changes)
    return XNNPACKQuantizer().set_global(
        replace(config, input_activation=spec, output_activation=spec)
    )


def weights(**changes: Any) -> XNNPACKQuantizer:
    config = get_symmetric_quantization_config(is_per_channel=True)
    assert config.weight is not None
    return XNNPACKQuantizer().set_global(replace(config, weight=replace(config.weight, **changes)))


def trained_by(kind: str) -> QuantizationConfig:
    config = get_symmetric_quantization_config(is_qat=True)
    assert config.input_activation is not None
    spec = replace(config.input_activation, observer_or_fake_quant_ctr=TRAINED[kind])
    return replace(config, input_activation=spec, output_activation=spec)


def observing(observer: Any) -> Callable[[], XNNPACKQuantizer]:
    return partial(activations, observer_or_fake_quant_ctr=observer)


def fixed() -> SmallQuantizer:
    scheme = torch.per_tensor_affine
    return SmallQuantizer(FixedQParamsQuantizationSpec(torch.int8, 1 / 16, 0, -128, 127, scheme))


# One for each class that `pt2q.observers` has for what is quantized, and each way to set it.
QUANTIZERS: dict[str, Callable[[], Quantizer]] = {
    "histogram": observing(HistogramObserver),
    "symmetric histogram": partial(activations, qscheme=torch.per_tensor_symmetric),
    "extremes": observing(MinMaxObserver),
    "averages": observing(MovingAverageMinMaxObserver.with_args(averaging_constant=0.1)),
    "own": observing(Largest),
    "channels": partial(weights, observer_or_fake_quant_ctr=PerChannelMinMaxObserver),
    "averages of channels": partial(
        weights, observer_or_fake_quant_ctr=MovingAveragePerChannelMinMaxObserver
    ),
    "fixed": fixed,
    "dynamic": lambda: XNNPACKQuantizer().set_global(
        get_symmetric_quantization_config(is_dynamic=True)
    ),
    "groups": lambda: WeightQuantizer(get_dynamic_activation_4bit_weight_config(32)),
}
TRAINED: dict[str, Any] = {
    "trained": FusedMovingAvgObsFakeQuantize.with_args(observer=MovingAverageMinMaxObserver),
    "trained histogram": FakeQuantize.with_args(observer=HistogramObserver),
    "learned": LearnableFakeQuantize.with_args(observer=MinMaxObserver),
}
KINDS = (*QUANTIZERS, *TRAINED)


def write_files(converted: QuantGraphModule, x: Tensor, stem: str) -> None:
    """What the runtimes read: a `.pte` for XNNPACK and an ONNX file."""
    executorch.lower(converted, (x,)).save(f"{stem}.pte")
    onnx.export(converted, (x,), f"{stem}.onnx", check=False)


def calibrate_among(folder: str, group: Any, kinds: Sequence[str]) -> None:
    """Calibrate with each kind of observer; one of the group, by its size another, writes files."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    for kind in kinds:
        module = prepared_by(kind)
        calibrate(module, [batch_of(i) for i in range(COUNT)], group=group)
        converted = convert_pt2e(module)
        torch.save(state_of(converted), f"{folder}/{kind}-{size}-{rank}.pt")
        if rank == 0:
            write_files(converted, *batch_of(0), f"{folder}/{kind}-{size}")


def calibrate_in_groups(rank: int, folder: str) -> None:
    """Calibrate as one of one, two, three and four; leave what came of each."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=4)
    for size in (1, 2, 3, 4):
        group = dist.new_group(list(range(4 - size, 4)))
        if rank >= 4 - size:
            calibrate_among(folder, group, KINDS)
    dist.barrier()
    dist.destroy_process_group()


def calibrate_together(rank: int, folder: str, size: int, kinds: Sequence[str]) -> None:
    """Calibrate as one of several that do nothing else."""
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
    try:
        calibrate_among(folder, None, kinds)
    finally:
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
