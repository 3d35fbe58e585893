"""Training in several processes and compiled."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from support.qat_quantizer import prepare
from support.training import batches, network, train
from torch import nn

from pt2q.ir.module import QuantGraphModule
from pt2q.observers import HistogramObserver
from pt2q.observers.synchronize import synchronize_observers


def _worker(rank: int, folder: str, module: QuantGraphModule) -> None:
    torch.set_num_threads(1)
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
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    alone = copy.deepcopy(module)
    fully_shard(module, mesh=init_device_mesh("cpu", (2,)))
    for model in (module, alone):
        train(model, torch.optim.SGD(model.parameters(), lr=0.01), batches(3))
    found = {k: getattr(v, "full_tensor", lambda v=v: v)() for k, v in module.state_dict().items()}
    expected = alone.state_dict()
    return [
        k for k in found if not torch.allclose(found[k].float(), expected[k].float(), atol=1e-5)
    ]


def test_several_processes(tmp_path: Path) -> None:
    """Replicas end with the same ranges; sharded parameters train as whole ones do."""
    prepared = prepare(network(), batches(1)[0])
    mp.spawn(_worker, (str(tmp_path), prepared), nprocs=2)
    (one, *first), (other, *second) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for name, value in one.items():
        if "running" not in name and "histogram." not in name:
            assert torch.equal(value, other[name]), name
    assert first.pop() == second.pop() == []
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    union = HistogramObserver(quant_min=-128, quant_max=127)
    union(torch.linspace(-1, 2, 8000))
    union(torch.linspace(-2, 6, 8000))
    torch.testing.assert_close(first[0], union.calculate_qparams()[0], rtol=0.02, atol=0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fast", [False, True])
def test_a_compiled_model_trains_alike(fast: bool) -> None:
    """In one graph, with the partitioner that decides what the backward pass computes anew."""
    torch._dynamo.reset()
    model, data = network()[:3], batches(3)
    plain, compiled = (prepare(model, data[0], fast=fast) for _ in range(2))
    run = torch.compile(compiled, backend="aot_eager_decomp_partition", fullgraph=True)
    for x in data:
        expected, actual = plain(x), run(x)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
        weights = torch.randn_like(expected)
        (expected * weights).sum().backward()
        (actual * weights).sum().backward()
    for (name, one), (_, other) in zip(
        plain.named_parameters(), compiled.named_parameters(), strict=True
    ):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-3, msg=name)
    for name, value in plain.named_buffers():
        torch.testing.assert_close(compiled.get_buffer(name), value, msg=name)
