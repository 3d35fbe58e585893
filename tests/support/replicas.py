"""One of two processes that train together; a process that is started finds it by name."""

from __future__ import annotations

import copy

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from pt2q.ir.module import QuantGraphModule
from pt2q.observers import HistogramObserver
from pt2q.observers.synchronize import synchronize_observers
from support.training import batches, train


def train_replica(rank: int, folder: str, module: QuantGraphModule) -> None:
    """Train as one of two, and leave what came of it in ``folder``."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    # What is handed to a process shares its memory with the others.
    model = nn.parallel.DistributedDataParallel(copy.deepcopy(module))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for x in batches(3, seed=rank):
        optimizer.zero_grad()
        model(x * (1 + rank)).square().mean().backward()
        optimizer.step()
    histogram = HistogramObserver(quant_min=-128, quant_max=127)
    histogram(torch.linspace(-1 - rank, 2 + 4 * rank, 8000))
    model.module.add_module("histogram", histogram)
    synchronize_observers(model)
    scale, zero_point = histogram.calculate_qparams()
    sharded = _sharded_differs(copy.deepcopy(module))
    torch.save((model.module.state_dict(), scale, zero_point, sharded), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def _sharded_differs(module: QuantGraphModule) -> list[str]:
    """The tensors that fully sharded training gives other values than training in one process."""
    alone = copy.deepcopy(module)
    fully_shard(module, mesh=init_device_mesh("cpu", (2,)))
    for model in (module, alone):
        train(model, torch.optim.SGD(model.parameters(), lr=0.01), batches(3))
    found = {k: getattr(v, "full_tensor", lambda v=v: v)() for k, v in module.state_dict().items()}
    expected = alone.state_dict()
    return [
        k for k in found if not torch.allclose(found[k].float(), expected[k].float(), atol=1e-5)
    ]
