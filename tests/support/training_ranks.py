"""Processes that train together; a process that is started finds them by name."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from pt2q import convert_pt2e
from pt2q.distributed import whole_state
from pt2q.ir.module import QuantGraphModule
from support.improving_ranks import join, state_of
from support.ranks import write_files
from support.training import batches, train


def trained(kind: str, module: QuantGraphModule, group: Any, steps: int) -> QuantGraphModule:
    """What a share of each batch makes of a module, converted."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    model: Any = copy.deepcopy(module)
    if kind == "ddp":
        model = nn.parallel.DistributedDataParallel(model, process_group=group)
    else:
        fully_shard(model, mesh=DeviceMesh.from_group(group, "cpu"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    train(model, optimizer, [x.chunk(size)[rank] for x in batches(steps)])
    fresh = copy.deepcopy(module)
    fresh.load_state_dict(whole_state(model, group))
    return convert_pt2e(fresh.eval())


def train_in_groups(rank: int, folder: str, module: QuantGraphModule) -> None:
    """Train as one of one, two, three and four; leave what came of each, and files."""
    join(rank, folder, 4)
    for size in (1, 2, 3, 4):
        group = dist.new_group(list(range(size)))
        if rank < size:
            found = {kind: trained(kind, module, group, 3) for kind in ("ddp", "fsdp")}
            states = {kind: state_of(converted) for kind, converted in found.items()}
            torch.save(states, f"{folder}/{size}-{rank}.pt")
        if rank in (0, size - 1):
            for kind, converted in found.items():
                write_files(converted, batches(1)[0], f"{folder}/{kind}-{size}-{rank}")
    dist.barrier()
    dist.destroy_process_group()
