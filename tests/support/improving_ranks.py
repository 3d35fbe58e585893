"""Processes that improve a model together; a process that is started finds them by name."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pt2q import quantize_pt2e
from pt2q.algorithms import (
    AWQ,
    GPTQ,
    AdaRound,
    BatchNormStatistics,
    BiasCorrection,
    CrossLayerEqualization,
    ScaleSearch,
    SmoothQuant,
)
from pt2q.algorithms.layerwise import Proposed, Work
from pt2q.distributed import calibrate
from pt2q.errors import DistributedError
from pt2q.flow import convert_pt2e, prepare_pt2e
from pt2q.ir.module import QuantGraphModule
from pt2q.quantizers import XNNPACKQuantizer, get_symmetric_quantization_config

COUNT = 9
ALGORITHMS: tuple[Any, ...] = (
    CrossLayerEqualization(),
    SmoothQuant(),
    AWQ(),
    ScaleSearch(),
    GPTQ(),
    AdaRound(steps=8),
    AdaRound(steps=8, block=2),
    BatchNormStatistics(),
    BiasCorrection(),
)


class Mixed(nn.Module):
    """Convolutions, a batch norm that cannot be folded, a norm with large channels, linears."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.batch_norm = nn.BatchNorm2d(8)
        self.norm = nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 4)
        with torch.no_grad():
            self.norm.weight[3] *= 40
            self.up.weight[:, 3] /= 40
            self.one.weight[2] *= 30
            self.two.weight[:, 2] /= 30

    def forward(self, x: Tensor) -> Tensor:
        x = self.batch_norm(torch.relu(self.two(torch.relu(self.one(x)))))
        return self.down(torch.relu(self.up(self.norm(x.mean((2, 3))))))


def batch_of(index: int) -> tuple[Tensor]:
    generator = torch.Generator().manual_seed(index)
    return (torch.randn(4, 3, 6, 6, generator=generator) * (1 + index % 3),)


def program() -> torch.export.ExportedProgram:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Mixed().eval()
    return torch.export.export(model, batch_of(0))


def four_bits() -> XNNPACKQuantizer:
    config = get_symmetric_quantization_config(is_per_channel=False, weight_qmin=-8, weight_qmax=7)
    return XNNPACKQuantizer().set_global(config)


def state_of(converted: QuantGraphModule) -> dict[str, Any]:
    """Everything that a converted module holds, and its text."""
    return {"code": converted.code, **converted.state_dict()}


def improved(algorithm: Any, group: Any = None) -> dict[str, Any]:
    """What one algorithm makes of the network, and what it said."""
    batches = [batch_of(i) for i in range(COUNT)]
    prepared = prepare_pt2e(program(), four_bits())
    calibrate(prepared, batches, group=group)
    report = algorithm(prepared, batches, group=group)
    said = [(r.layer, r.before, r.after, r.kept, r.reason) for r in report.rows]
    return {"said": said, **state_of(convert_pt2e(prepared))}


def at_once(group: Any = None, **options: Any) -> dict[str, Any]:
    """What one call makes of the network."""
    batches = [batch_of(i) for i in range(COUNT)]
    return state_of(quantize_pt2e(program(), four_bits(), batches, group=group, **options))


def join(rank: int, folder: str, size: int, store: str = "store") -> None:
    torch.set_num_threads(1)
    place = f"file://{folder}/{store}"
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=size)


def improve_in_groups(rank: int, folder: str) -> None:
    """Improve as one of two, three and four; leave what came of it."""
    join(rank, folder, 4)
    for size in (2, 3, 4):
        group = dist.new_group(list(range(size)))
        if rank < size:
            found = {str(a): improved(a, group) for a in ALGORITHMS}
            found["best"] = at_once(group, effort="best")
            torch.save(found, f"{folder}/{size}-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


class Dying(GPTQ):
    """The second process is killed when it comes to a layer."""

    def propose(self, work: Work) -> Iterator[Proposed]:
        """See `GPTQ.propose`."""
        if dist.get_rank() == 1 and work.layer.name == "linear":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().propose(work)

    def __repr__(self) -> str:
        return repr(GPTQ())


def killed_at(stop: int, rank: int) -> Iterator[tuple[Tensor]]:
    """Batches; the second process is killed where it wants one of them."""
    for index in range(COUNT):
        if rank == 1 and index == stop:
            os.kill(os.getpid(), signal.SIGKILL)
        yield batch_of(index)


def quantize_among(rank: int, folder: str, size: int, dies: str) -> None:
    """Quantize as one of several; leave what came of it, or what was said instead."""
    join(rank, folder, size, f"store-{size}-{dies}")
    batches = killed_at(8 if dies == "calibrating" else COUNT, rank)
    algorithms = [SmoothQuant(), Dying() if dies == "improving" else GPTQ()]
    kept = f"{folder}/kept"
    try:
        made = quantize_pt2e(program(), four_bits(), batches, algorithms=algorithms, resume=kept)
    except DistributedError as error:
        torch.save(str(error), f"{folder}/said-{rank}.pt")
        return
    torch.save(state_of(made), f"{folder}/made-{rank}.pt")
    dist.destroy_process_group()
