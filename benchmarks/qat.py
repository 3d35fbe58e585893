"""Quantization-aware training: the cost of preparing, converting and of a step; peer and pt2q.

    python benchmarks/qat.py                       everything; about ten minutes
    python benchmarks/qat.py --models mobilenet_v2 --repeats 3

The peer is ``torchao.quantization.pt2e`` with ExecuTorch's XNNPACK quantizer. Both sides get the
same exported module and the same inputs, alternating, int8 with per-channel weights. Times are CPU
seconds of one thread, medians over the repeats. A step is forward, backward and SGD at batch 8 and
96 pixels; its memory is what autograd keeps for the backward pass, every storage counted once.
Raw samples go to ``benchmarks/results/qat.json``.
"""

from __future__ import annotations

import argparse
import copy
import platform
from pathlib import Path
from typing import Any

import measuring
import torch
from measuring import cpu_seconds, median
from stacks import Ours, Peer
from support.nets import NETS
from torch import nn

MODELS = ("mobilenet_v2", "resnet18", "resnet50")
RESULT = measuring.RESULTS / "qat.json"


def export(name: str, pixels: int, batch: int) -> tuple[Any, torch.Tensor]:
    x = torch.randn(batch, 3, pixels, pixels)
    return torch.export.export(NETS[name].build(0).train(), (x,)), x


def flow(name: str, repeats: int) -> dict[str, Any]:
    """Seconds of preparing and converting, both stacks in turn."""
    exported, x = export(name, 64, 2)
    sides = (Ours(is_qat=True), Peer(is_qat=True))
    samples: dict[str, Any] = {side.name: {"prepare": [], "convert": []} for side in sides}
    for turn in range(repeats):
        for side in sides:
            preparing, model = cpu_seconds(side.prepare, exported.module(check_guards=False))
            model = side.train(model)
            model(x)
            converting, _ = cpu_seconds(side.convert, model)
            if turn > 0 or repeats == 1:  # the first turn warms up
                samples[side.name]["prepare"].append(preparing)
                samples[side.name]["convert"].append(converting)
    return samples


class Step:
    """A training step of one model."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def __call__(self, x: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        self.model(x).square().mean().backward()
        self.optimizer.step()


def kept_megabytes(model: nn.Module, x: torch.Tensor) -> float:
    """What one forward pass keeps for the backward pass, parameters left out."""
    known = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}
    alive = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x)
    return sum(kept.values()) / 1e6


def steps(name: str, repeats: int) -> dict[str, Any]:
    """Seconds of a training step and what it keeps, of the float model and both stacks."""
    exported, x = export(name, 96, 8)
    models: dict[str, Any] = {"float": NETS[name].build(0).train()}
    for side in (Ours(is_qat=True), Ours(is_qat=True, fast=False), Peer(is_qat=True)):
        module = copy.deepcopy(exported).module(check_guards=False)
        models[side.name] = side.train(side.prepare(module))
    runs = {key: Step(model) for key, model in models.items()}
    calls = {key: lambda turn, run=run: run(x) for key, run in runs.items()}
    samples: dict[str, Any] = measuring.in_turn(calls, repeats)
    samples["megabytes"] = {key: kept_megabytes(m, x) for key, m in models.items()}
    return samples


def report(name: str, flow: dict[str, Any], steps: dict[str, Any]) -> None:
    print(name)
    for part in ("prepare", "convert"):
        ours, peer = (median(flow[key][part]) for key in ("pt2q", "peer"))
        print(f"  {part:8} {1e3 * ours:8.0f} ms, peer {1e3 * peer:8.0f} ms: {peer / ours:.1f}x")
    ours, peer = (
        sum(median(flow[key][part]) for part in ("prepare", "convert")) for key in ("pt2q", "peer")
    )
    print(f"  both     {1e3 * ours:8.0f} ms, peer {1e3 * peer:8.0f} ms: {peer / ours:.1f}x")
    base = median(steps["float"])
    for key in ("float", "pt2q", "pt2q plain", "peer"):
        seconds, size = median(steps[key]), steps["megabytes"][key]
        print(
            f"  step {key:10} {1e3 * seconds:7.0f} ms, {seconds / base:.2f}x; {size:6.0f} MB kept"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--flow-repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    measuring.set_up()
    found: dict[str, Any] = {"torch": torch.__version__, "machine": platform.processor()}
    for name in options.models:
        found[name] = {
            "flow": flow(name, options.flow_repeats),
            "step": steps(name, options.repeats),
        }
        report(name, found[name]["flow"], found[name]["step"])
    measuring.write_json(options.out, found)


if __name__ == "__main__":
    main()
