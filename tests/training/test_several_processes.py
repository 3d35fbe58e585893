"""Training in several processes and compiled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from support.processes import start
from support.qat_quantizer import QATQuantizer, prepare
from support.replicas import train_replica
from support.threads import one_thread
from support.training import batches, network
from support.training_ranks import train_in_groups

from pt2q import prepare_qat_pt2e
from pt2q.ir.module import QuantGraphModule
from pt2q.observers import HistogramObserver


def test_several_processes(tmp_path: Path) -> None:
    """Replicas end with the same ranges; sharded parameters train as whole ones do."""
    prepared = prepare(network(), batches(1)[0])
    other = start(train_replica, 1, str(tmp_path), prepared)
    with one_thread():
        train_replica(0, str(tmp_path), prepared)
    assert other.wait().returncode == 0
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


@pytest.mark.slow
def test_all_processes_end_with_one_model(tmp_path: Path) -> None:
    """Sharded or not, each of any number converts the same one, to the bit; it has learned."""
    module = prepare_for_any_size()
    mp.spawn(train_in_groups, (str(tmp_path), module), nprocs=4)
    ends = {}
    for size in (1, 2, 3, 4):
        first, *others = (torch.load(tmp_path / f"{size}-{rank}.pt") for rank in range(size))
        for kind in ("ddp", "fsdp"):
            assert all(_same(other[kind], first[kind]) for other in others), (size, kind)
            ends[size, kind] = first[kind]
            for suffix in (".pte", ".onnx"):
                files = [p.read_bytes() for p in tmp_path.glob(f"{kind}-{size}-?{suffix}")]
                assert len(files) == min(size, 2) and len(set(files)) == 1, (size, kind, suffix)
    # In one process sharding changes nothing; in several, sums of gradients are rounded otherwise.
    assert _same(ends[1, "ddp"], ends[1, "fsdp"])
    assert not torch.equal(ends[4, "ddp"]["8.bias"], module.get_parameter("8.bias"))


def prepare_for_any_size() -> QuantGraphModule:
    sizes = {0: torch.export.Dim.AUTO}
    exported = torch.export.export(network().train(), (batches(1)[0],), dynamic_shapes=(sizes,))
    return prepare_qat_pt2e(exported, QATQuantizer()).train()


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(v, other[k]) if isinstance(v, torch.Tensor) else v == other[k]
        for k, v in one.items()
    )


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
