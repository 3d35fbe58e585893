"""Prepare, calibrate, convert: seconds and peak memory, the peer and pt2q in one run.

    python benchmarks/pipeline.py                    everything; about twenty minutes
    python benchmarks/pipeline.py --models resnet50 --repeats 3

The peer is ``torchao.quantization.pt2e`` with ExecuTorch's XNNPACK quantizer. Both sides get the
same exported module and the same inputs, alternating, in their default static int8 setting.
Times are CPU seconds of one thread, medians over the repeats; memory is how far each step's peak
exceeds what was in use before it, in a process of its own (Linux). Raw samples go to
``benchmarks/results/pipeline.json``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

import torch  # noqa: E402
from support.nets import NETS, residual_mlp  # noqa: E402

LAYERS = (100, 200, 400, 800, 1600)
MODELS = ("mobilenet_v2", "resnet50", "vit_s16", *(f"mlp_{n}" for n in LAYERS))
RESULT = HERE / "results" / "pipeline.json"


def net_of(name: str) -> Any:
    return residual_mlp(int(name.removeprefix("mlp_"))) if name.startswith("mlp_") else NETS[name]


class Ours:
    name = "pt2q"

    def __init__(self) -> None:
        from pt2q import convert_pt2e, prepare_pt2e
        from pt2q.quantizers import XNNPACKQuantizer

        self._prepare, self._convert, self._quantizer = prepare_pt2e, convert_pt2e, XNNPACKQuantizer

    def prepare(self, exported: Any) -> Any:
        return self._prepare(exported.module(check_guards=False), self._quantizer())

    def convert(self, prepared: Any) -> Any:
        return self._convert(prepared)


class Peer:
    name = "peer"

    def __init__(self) -> None:
        from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnn
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        self._prepare, self._convert, self._xnn = prepare_pt2e, convert_pt2e, xnn

    def prepare(self, exported: Any) -> Any:
        config = self._xnn.get_symmetric_quantization_config(is_per_channel=True)
        quantizer = self._xnn.XNNPACKQuantizer().set_global(config)
        return self._prepare(exported.module(check_guards=False), quantizer)

    def convert(self, prepared: Any) -> Any:
        return self._convert(prepared)


def cpu_seconds(call: Any, *args: Any) -> tuple[float, Any]:
    start = time.process_time()
    result = call(*args)
    return time.process_time() - start, result


def repeats_for(name: str, side: Any, repeats: int) -> int:
    """The peer is quadratic: one sample of its largest models has to do."""
    layers = int(name.removeprefix("mlp_")) if name.startswith("mlp_") else 0
    return 1 if side.name == "peer" and layers >= 400 else repeats


def passes_of(name: str, repeats: int) -> dict[str, Any]:
    net = net_of(name)
    inputs = net.inputs(1)
    exported = torch.export.export(net.build(0), inputs)
    sides = [Ours(), Peer()]
    samples: dict[str, Any] = {s.name: {"prepare": [], "convert": []} for s in sides}
    prepared: dict[str, Any] = {}
    for turn in range(repeats + 1):  # the first turn warms up
        for side in sides:
            count = repeats_for(name, side, repeats)
            if turn > count or (turn == 0 and count == 1):
                continue
            seconds, model = cpu_seconds(side.prepare, exported)
            with torch.no_grad():
                model(*inputs)
            converting, _ = cpu_seconds(side.convert, model)
            if turn > 0:
                samples[side.name]["prepare"].append(seconds)
                samples[side.name]["convert"].append(converting)
            if not name.startswith("mlp_") and turn == repeats:
                prepared[side.name] = side.prepare(exported)
    if prepared:
        samples["calibrate"] = calibration(exported, prepared, net, repeats)
    return samples


def calibration(exported: Any, prepared: dict[str, Any], net: Any, repeats: int) -> dict[str, Any]:
    """Seconds per batch of one: the float module and both prepared ones, in turn."""
    models = {"float": exported.module(check_guards=False), **prepared}
    samples: dict[str, list[float]] = {name: [] for name in models}
    with torch.no_grad():
        for turn in range(4 * repeats + 3):
            batch = net.inputs(1, seed=turn)
            for name, model in models.items():
                seconds, _ = cpu_seconds(model, *batch)
                if turn >= 3:
                    samples[name].append(seconds)
    return samples


# ------------------------------------------------------------------ memory, in its own process


def peak_megabytes(name: str, side_name: str) -> dict[str, float]:
    """Growth of the resident size over prepare, one batch, convert, each from where it began."""
    net = net_of(name)
    inputs = net.inputs(1)
    exported = torch.export.export(net.build(0), inputs)
    with torch.no_grad():
        exported.module(check_guards=False)(*inputs)
    side = Ours() if side_name == "pt2q" else Peer()
    grown = {}
    model, grown["prepare"] = growth(side.prepare, exported)
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
    result = {}
    for side in ("pt2q", "peer"):
        command = [sys.executable, __file__, "--memory", name, side]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        result[side] = json.loads(done.stdout.splitlines()[-1])
    return result


# ------------------------------------------------------------------ summary


def median(values: list[float]) -> float:
    return statistics.median(values) if values else math.nan


def total(samples: dict[str, Any], side: str) -> float:
    return median(samples[side]["prepare"]) + median(samples[side]["convert"])


def exponent(results: dict[str, Any], side: str) -> float:
    """Least-squares slope of log seconds over log layers of the residual MLPs."""
    points = [
        (math.log(n), math.log(total(results[f"mlp_{n}"]["passes"], side)))
        for n in LAYERS
        if f"mlp_{n}" in results
    ]
    if len(points) < 3:
        return math.nan
    mean_x = statistics.fmean(x for x, _ in points)
    mean_y = statistics.fmean(y for _, y in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points)
    return slope / sum((x - mean_x) ** 2 for x, _ in points)


def print_summary(results: dict[str, Any]) -> None:
    print(f"{'model':14}{'prepare + convert, s':>26}{'ratio':>8}{'calibration / float':>24}")
    print(f"{'':14}{'pt2q':>13}{'peer':>13}{'':>8}{'pt2q':>12}{'peer':>12}")
    for name, result in results.items():
        samples = result["passes"]
        ours, peer = total(samples, "pt2q"), total(samples, "peer")
        row = f"{name:14}{ours:13.3f}{peer:13.3f}{peer / ours:8.1f}"
        if "calibrate" in samples:
            floats = median(samples["calibrate"]["float"])
            row += "".join(
                f"{median(samples['calibrate'][s]) / floats:12.2f}" for s in ("pt2q", "peer")
            )
        print(row)
    for side in ("pt2q", "peer"):
        print(f"growth with layers, exponent, {side}: {exponent(results, side):.2f}")
    for name, result in results.items():
        for side, values in result.get("memory", {}).items():
            parts = ", ".join(f"{key} {value:.0f}" for key, value in values.items())
            print(f"peak memory, MB, {name}, {side}: {parts}")


def save(results: dict[str, Any], path: Path) -> None:
    versions = {name: __import__(name).__version__ for name in ("torch", "torchao", "pt2q")}
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"versions": versions, "machine": machine, "results": results}, indent=1)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--memory", nargs=2, metavar=("MODEL", "SIDE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if options.memory:
        print(json.dumps(peak_megabytes(*options.memory)))
        return
    results: dict[str, Any] = {}
    for name in options.models:
        print(f"... {name}", file=sys.stderr, flush=True)
        results[name] = {"passes": passes_of(name, options.repeats)}
        if not options.no_memory and not name.startswith("mlp_"):
            results[name]["memory"] = memory_of(name)
        save(results, options.out)
    print_summary(results)


if __name__ == "__main__":
    main()
