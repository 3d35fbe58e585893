"""Training in several processes and compiled."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from support.qat_quantizer import prepare
from support.replicas import train_replica
from support.training import batches, network

from pt2q.observers import HistogramObserver


def test_several_processes(tmp_path: Path) -> None:
    """Replicas end with the same ranges; sharded parameters train as whole ones do."""
    prepared = prepare(network(), batches(1)[0])
    mp.spawn(train_replica, (str(tmp_path), prepared), nprocs=2)
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
