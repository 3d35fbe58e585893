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
import json
import os
import platform
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

import torch  # noqa: E402
from support.nets import NETS  # noqa: E402
from torch import nn  # noqa: E402

MODELS = ("mobilenet_v2", "resnet18", "resnet50")
RESULT = HERE / "results" / "qat.json"


class Ours:
    def __init__(self, fast: bool = False) -> None:
        self.name = "pt2q fast" if fast else "pt2q"
        self.fast = fast

    def prepare(self, exported: Any) -> Any:
        from pt2q import prepare_qat_pt2e
        from pt2q.quantizers import XNNPACKQuantizer, get_symmetric_quantization_config

        config = get_symmetric_quantization_config(is_per_channel=True, is_qat=True)
        quantizer = XNNPACKQuantizer().set_global(config)
        return prepare_qat_pt2e(exported.module(check_guards=False), quantizer, fast=self.fast)

    def train(self, prepared: Any) -> Any:
        return prepared.train()

    def convert(self, prepared: Any) -> Any:
        from pt2q import convert_pt2e

        return convert_pt2e(prepared)


class Peer:
    name = "peer"

    def prepare(self, exported: Any) -> Any:
        from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnn
        from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

        config = xnn.get_symmetric_quantization_config(is_per_channel=True, is_qat=True)
        quantizer = xnn.XNNPACKQuantizer().set_global(config)
        return prepare_qat_pt2e(exported.module(check_guards=False), quantizer)

    def train(self, prepared: Any) -> Any:
        from torchao.quantization.pt2e import move_exported_model_to_train

        return move_exported_model_to_train(prepared)

    def convert(self, prepared: Any) -> Any:
        from torchao.quantization.pt2e import move_exported_model_to_eval
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

        return convert_pt2e(move_exported_model_to_eval(prepared))


def cpu_seconds(call: Any, *args: Any) -> tuple[float, Any]:
    start = time.process_time()
    result = call(*args)
    return time.process_time() - start, result


def export(name: str, pixels: int, batch: int) -> tuple[Any, torch.Tensor]:
    x = torch.randn(batch, 3, pixels, pixels)
    return torch.export.export(NETS[name].build(0).train(), (x,)), x


def flow(name: str, repeats: int) -> dict[str, Any]:
    exported, x = export(name, 64, 2)
    samples: dict[str, Any] = {}
    for turn in range(repeats):
        for side in (Ours(), Peer()):
            preparing, model = cpu_seconds(side.prepare, exported)
            model = side.train(model)
            model(x)
            converting, _ = cpu_seconds(side.convert, model)
            if turn > 0 or repeats == 1:  # the first turn warms up
                found = samples.setdefault(side.name, {"prepare": [], "convert": []})
                found["prepare"].append(preparing)
                found["convert"].append(converting)
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
    exported, x = export(name, 96, 8)
    sides = [Ours(), Ours(fast=True), Peer()]
    models: dict[str, Any] = {"float": NETS[name].build(0).train()}
    for side in sides:
        own = copy.deepcopy(exported)
        models[side.name] = side.train(side.prepare(own))
    runs = {key: Step(model) for key, model in models.items()}
    samples: dict[str, Any] = {key: [] for key in runs}
    for turn in range(repeats + 1):
        for key, run in runs.items():
            seconds, _ = cpu_seconds(run, x)
            if turn > 0:
                samples[key].append(seconds)
    samples["megabytes"] = {key: kept_megabytes(m, x) for key, m in models.items()}
    return samples


def report(name: str, flow: dict[str, Any], steps: dict[str, Any]) -> None:
    print(name)
    for part in ("prepare", "convert"):
        ours, peer = (statistics.median(flow[key][part]) for key in ("pt2q", "peer"))
        print(f"  {part:8} {1e3 * ours:8.0f} ms, peer {1e3 * peer:8.0f} ms: {peer / ours:.1f}x")
    ours, peer = (
        sum(statistics.median(flow[key][part]) for part in ("prepare", "convert"))
        for key in ("pt2q", "peer")
    )
    print(f"  both     {1e3 * ours:8.0f} ms, peer {1e3 * peer:8.0f} ms: {peer / ours:.1f}x")
    base = statistics.median(steps["float"])
    for key in ("float", "pt2q", "pt2q fast", "peer"):
        seconds, size = statistics.median(steps[key]), steps["megabytes"][key]
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
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found: dict[str, Any] = {"torch": torch.__version__, "machine": platform.processor()}
    for name in options.models:
        found[name] = {
            "flow": flow(name, options.flow_repeats),
            "step": steps(name, options.repeats),
        }
        report(name, found[name]["flow"], found[name]["step"])
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
