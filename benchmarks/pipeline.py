"""Prepare, calibrate, convert: seconds and peak memory, the peer and pt2q in one run.

    python benchmarks/pipeline.py                    everything; about twenty minutes
    python benchmarks/pipeline.py --models resnet50 --repeats 3

The peer is ``torchao.quantization.pt2e`` with ExecuTorch's XNNPACK quantizer. Both sides get the
same network and the same inputs, each in a fresh process, in their default static int8 setting.
Times are CPU seconds of one thread, medians over the repeats; memory is how far each step's peak
exceeds what was in use before it, in a process of its own (Linux). Raw samples go to
``benchmarks/results/pipeline.json``.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import measuring
import overview
import torch
from large_convnets import LARGE
from measuring import cpu_seconds, median
from stacks import Ours, Peer
from support.nets import NETS, Net, residual_mlp
from tiling import Tiled
from torch.fx import Graph, GraphModule

from pt2q.observers.batched import batched_qparams
from pt2q.observers.min_max.range_observer import RangeObserver

LAYERS = (100, 200, 400, 800, 1600, 3200)
MODELS = ("mobilenet_v2", "resnet50", "vit_s16", *LARGE, *(f"mlp_{n}" for n in LAYERS))
RESULT = measuring.RESULTS / "pipeline.json"
SLOW = 400  # layers: the peer is quadratic, one sample of its largest models has to do
TOO_SLOW = 1600  # layers: and none of these, which are chains of an exported one
LINK = 200
STEPS = ("prepare", "convert", "least")
CALIBRATED = (*(name for name in MODELS if not name.startswith("mlp_")), "mlp_100")


def layers_of(name: str) -> int:
    """The layers of a residual MLP; 0 for other networks."""
    return int(name.removeprefix("mlp_")) if name.startswith("mlp_") else 0


def net_of(name: str) -> Net:
    return residual_mlp(layers_of(name)) if layers_of(name) else (NETS | LARGE)[name]


def exported_net(name: str) -> tuple[Any, tuple[torch.Tensor, ...]]:
    if layers_of(name) >= TOO_SLOW:
        link, inputs = exported_net(f"mlp_{LINK}")
        return Tiled(link, layers_of(name) // LINK), inputs
    net = net_of(name)
    inputs = net.inputs(1)
    return torch.export.export(net.build(0), inputs), inputs


# ------------------------------------------------------------------ seconds


def passes_of(name: str, repeats: int) -> dict[str, Any]:
    """Seconds of prepare and convert of both stacks, and of calibration."""
    samples: dict[str, Any] = {}
    for side in ("pt2q", "peer"):
        found = in_process("--flow", name, side, "--repeats", str(repeats_of(name, side, repeats)))
        steps = STEPS if side == "pt2q" else STEPS[:2]
        samples[side] = {step: [one[step] for one in found] for step in steps}
    if name in CALIBRATED:
        samples["calibrate"] = calibration(name, 1, 4 * repeats)
        samples["calibrate_8"] = calibration(name, 8, repeats)
    return samples


def repeats_of(name: str, side: str, repeats: int) -> int:
    """How many samples are taken; of the peer's largest models one, or none."""
    if side == "pt2q" or layers_of(name) < SLOW:
        return repeats
    return 0 if layers_of(name) >= TOO_SLOW else 1


def flows(name: str, side_name: str, repeats: int) -> list[dict[str, float]]:
    """Seconds of one side, in a process that has seen nothing of the other; a first run warms up.

    Where one sample has to do, it is taken cold.
    """
    if repeats == 0:
        return []
    exported, inputs = exported_net(name)
    side = Ours() if side_name == "pt2q" else Peer()
    if repeats > 1:
        one_flow(side, exported, inputs)
    return [one_flow(side, exported, inputs) for _ in range(repeats)]


def one_flow(side: Any, exported: Any, inputs: tuple[torch.Tensor, ...]) -> dict[str, float]:
    """Seconds of one prepare and one convert, with a batch between them."""
    module = exported.module(check_guards=False)
    gc.collect()  # what others left is not looked through in what is measured
    preparing, model = cpu_seconds(side.prepare, module)
    with torch.no_grad():
        model(*inputs)
    gc.collect()
    converting, converted = cpu_seconds(side.convert, model)
    found = {"prepare": preparing, "convert": converting}
    return found | ({"least": least(module, model, converted)} if side.name == "pt2q" else {})


def least(module: Any, prepared: Any, converted: Any) -> float:
    """CPU seconds of what cannot be done without: torch's own copies of both graphs.

    And the observers made and asked for their parameters, and the code of both results.
    """
    observers = [o for o in prepared.modules() if isinstance(o, RangeObserver)]
    parts = (
        lambda: [Graph().graph_copy(graph, {}) for graph in (module.graph, prepared.graph)],
        lambda: [made_anew(observer) for observer in observers],
        lambda: batched_qparams(observers),
        lambda: [GraphModule.recompile(model) for model in (prepared, converted)],
    )
    gc.collect()
    return sum(cpu_seconds(part)[0] for part in parts)


def made_anew(observer: RangeObserver) -> RangeObserver:
    """An observer of the same kind and settings."""
    names = ("dtype", "qscheme", "quant_min", "quant_max", "ch_axis")
    return type(observer)(**{name: getattr(observer, name) for name in names})


def calibration(name: str, batch: int, repeats: int) -> dict[str, list[float]]:
    """Seconds per batch: the float module and both prepared ones, in turn."""
    net = net_of(name)
    batches = [net.inputs(batch, seed=turn) for turn in range(repeats + 3)]
    exported = torch.export.export(net.build(0), batches[0])
    models = {"float": exported.module(check_guards=False)}
    for side in (Ours(), Peer()):
        models[side.name] = side.prepare(exported.module(check_guards=False))
    runs = {key: lambda turn, m=model: m(*batches[turn]) for key, model in models.items()}
    with torch.no_grad():
        return measuring.in_turn(runs, repeats, warm_up=3)


# ------------------------------------------------------------------ memory, in its own process


def peak_megabytes(name: str, side_name: str) -> dict[str, float]:
    """Growth of the resident size over prepare, one batch, convert, each from where it began."""
    exported, inputs = exported_net(name)
    with torch.no_grad():
        exported.module(check_guards=False)(*inputs)
    side = Ours() if side_name == "pt2q" else Peer()
    grown = {}
    model, grown["prepare"] = growth(side.prepare, exported.module(check_guards=False))
    with torch.no_grad():
        _, grown["calibrate"] = growth(model, *inputs)
    converted, grown["convert"] = growth(side.convert, model)
    kept = sum(t.numel() * t.element_size() for t in converted.state_dict().values()) / 1e6
    return {**grown, "state_dict": kept}


def growth(call: Any, *args: Any) -> tuple[Any, float]:
    """What a call gives, and by how much its peak exceeds the memory in use before it, in MB."""
    Path("/proc/self/clear_refs").write_text("5")  # forget earlier peaks
    before = resident("VmRSS")
    result = call(*args)
    return result, resident("VmHWM") - before


def resident(field: str) -> float:
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{field}:")[1].split()[0]) / 1024


def memory_of(name: str) -> dict[str, Any]:
    return {side: in_process("--memory", name, side) for side in ("pt2q", "peer")}


def in_process(*arguments: str) -> Any:
    """What this program prints in a process of its own."""
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


# ------------------------------------------------------------------ summary


def total(samples: dict[str, Any], side: str) -> float:
    return median(samples[side]["prepare"]) + median(samples[side]["convert"])


def line_of(name: str, samples: dict[str, Any]) -> str:
    ours = total(samples, "pt2q")
    peer = total(samples, "peer") if samples["peer"]["prepare"] else math.nan
    over = ours / median(samples["pt2q"]["least"])
    line = f"{name:14}{ours:13.3f}{peer:13.3f}{peer / ours:8.1f}{over:9.1f}"
    if "calibrate" not in samples:
        return line
    calibrate = {side: median(values) for side, values in samples["calibrate"].items()}
    ratios = (calibrate[side] / calibrate["float"] for side in ("pt2q", "peer"))
    return line + "".join(f"{ratio:12.2f}" for ratio in ratios)


def print_summary(results: dict[str, Any]) -> None:
    head = f"{'model':14}{'prepare + convert, s':>26}{'ratio':>8}{'of least':>9}"
    print(f"{head}{'calibration / float':>24}")
    print(f"{'':14}{'pt2q':>13}{'peer':>13}{'':>17}{'pt2q':>12}{'peer':>12}")
    for name, result in results.items():
        print(line_of(name, result["passes"]))
    for side in ("pt2q", "peer"):
        print(f"growth with layers, exponent, {side}: {overview.growth(results, side):.2f}")
    for name, result in results.items():
        for side, values in result.get("memory", {}).items():
            parts = ", ".join(f"{key} {value:.0f}" for key, value in values.items())
            print(f"peak memory, MB, {name}, {side}: {parts}")


def save(results: dict[str, Any], path: Path) -> None:
    found = {
        "versions": measuring.versions("torch", "torchao", "pt2q"),
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "results": results,
    }
    measuring.write_json(path, found)


def options_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULT)
    for part in ("--memory", "--flow"):
        parser.add_argument(part, nargs=2, metavar=("MODEL", "SIDE"), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = options_of()
    measuring.set_up()
    if options.memory:
        print(json.dumps(peak_megabytes(*options.memory)))
        return
    if options.flow:
        print(json.dumps(flows(*options.flow, options.repeats)))
        return
    results: dict[str, Any] = {}
    for name in options.models:
        print(f"... {name}", file=sys.stderr, flush=True)
        results[name] = {"passes": passes_of(name, options.repeats)}
        if not options.no_memory and not layers_of(name):
            results[name]["memory"] = memory_of(name)
        save(results, options.out)
    print_summary(results)


if __name__ == "__main__":
    main()
