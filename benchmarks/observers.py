"""The histogram observer: quality, search time and cost of calibration, the peer in the same run.

    python benchmarks/observers.py                 everything; some minutes
    python benchmarks/observers.py --only quality
    python benchmarks/observers.py --only cost --models mobilenet_v2 --repeats 5

Quality is the signal to quantization noise ratio in dB on the observed data, of ours, of the
peer's ``HistogramObserver`` and of the best scale and zero point that a dense search on the raw
data finds. Cost is the time of a forward pass with an observer at each value that static int8
quantization of convolutions, linear layers and additions observes, over that of the float forward:
CPU time of one thread, alternating, medians. Raw numbers go to ``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))
warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)

import torch  # noqa: E402
from support.nets import NETS  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torchao.quantization.pt2e.observer import HistogramObserver as PeerObserver  # noqa: E402

from pt2q.numerics.rounding import round_trip  # noqa: E402
from pt2q.numerics.sqnr import sqnr  # noqa: E402
from pt2q.observers import HistogramObserver, batched_qparams  # noqa: E402

RESULT = HERE / "results" / "observers.json"
SIZES = ((64, 1), (64, 8), (1000, 1), (4096, 3), (20_000, 1), (100_000, 1), (100_000, 4),
         (1_000_000, 1), (1_000_000, 3))  # fmt: skip
TYPES: dict[str, tuple[torch.dtype, int, int, torch.qscheme]] = {
    "int8": (torch.int8, -128, 127, torch.per_tensor_affine),
    "uint8": (torch.uint8, 0, 255, torch.per_tensor_affine),
    "int8 sym": (torch.int8, -128, 127, torch.per_tensor_symmetric),
    "4 bit": (torch.int8, -8, 7, torch.per_tensor_affine),
    "4 bit u": (torch.uint8, 0, 15, torch.per_tensor_affine),
    "4 bit sym": (torch.int8, -8, 7, torch.per_tensor_symmetric),
}

# --------------------------------------------------------------------------------------- quality


def _laplace(normal: Tensor) -> Tensor:
    uniform = torch.rand_like(normal) - 0.5
    return -uniform.sign() * torch.log1p(-2 * uniform.abs() + 1e-7)


def _outliers(normal: Tensor) -> Tensor:
    return torch.where(torch.rand_like(normal) < 1e-3, 100 * normal, normal)


def _student(normal: Tensor) -> Tensor:
    return normal / (torch.randn(3, *normal.shape).square().mean(0)).sqrt()


def _bimodal(normal: Tensor) -> Tensor:
    return torch.where(torch.rand_like(normal) < 0.5, 0.1 * normal - 1, 0.1 * normal + 3)


def _outlier_channel(normal: Tensor) -> Tensor:
    channel = torch.arange(normal.numel()) % 384
    return torch.where(channel == 7, 30 * normal, normal)


DATA: dict[str, Callable[[Tensor], Tensor]] = {
    "gaussian": lambda normal: normal,
    "laplace": _laplace,
    "relu": torch.relu,
    "gelu": lambda normal: F.gelu(1.5 * normal),
    "outliers": _outliers,
    "student t3": _student,
    "bimodal": _bimodal,
    "outlier channel": _outlier_channel,
}


class Raw:
    """The squared error of any grid on raw data, by sums over the sorted values."""

    def __init__(self, x: Tensor) -> None:
        self.values = x.double().sort().values
        self.sums = torch.cat([torch.zeros(1).double(), self.values.cumsum(0)])
        self.total, self.square = self.sums[-1], self.values.square().sum()

    def error(self, scale: Tensor, point: Tensor, low: int, high: int) -> Tensor:
        """Errors of candidates ``[C]``: ``sum (x - last)^2 - 2 s sum_q sum_x max(b_q - x, 0)``."""
        borders = (torch.arange(low, high).double() + 0.5 - point[:, None]) * scale[:, None]
        index = torch.searchsorted(self.values, borders)
        inner = (borders * index - self.sums[index]).sum(1)
        last = (high - point) * scale
        around = self.square - 2 * last * self.total + last.square() * self.values.numel()
        return around - 2 * scale * inner

    def best(self, low: int, high: int, symmetric: bool) -> tuple[Tensor, Tensor]:
        """Dense search over (low, high), then three times more closely around the best."""
        least, most = self.values[0].clamp(max=0), self.values[-1].clamp(min=0)
        ratios = torch.cat([torch.logspace(0, -2.5, 40).double(), torch.zeros(1).double()])
        if symmetric:
            reach = torch.maximum(-least / -low, most / high)
            scale = torch.logspace(0.02, -2.5, 400).double() * reach
            point = torch.zeros_like(scale)
        else:
            ends = torch.cartesian_prod(least * ratios, most * ratios)
            scale = (ends[:, 1] - ends[:, 0]) / (high - low)
            scale, ends = scale[scale > 0], ends[scale > 0]
            point = (low - ends[:, 0] / scale).round()
        scale, point = self._least(scale, point, low, high)
        shifts = torch.zeros(1).double() if symmetric else torch.arange(-2, 3).double()
        for spread in (0.15, 0.03, 0.006):
            factors = 1 + spread * torch.linspace(-1, 1, 41).double()
            pairs = torch.cartesian_prod(scale * factors, (point + shifts).clamp(low, high))
            scale, point = self._least(pairs[:, 0], pairs[:, 1], low, high)
        return scale, point

    def _least(self, scale: Tensor, point: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
        parts = zip(scale.split(256), point.split(256), strict=True)
        errors = torch.cat([self.error(s, z, low, high) for s, z in parts])
        best = errors.argmin()
        return scale[best], point[best]


def _search(observer: Any) -> tuple[float, int, float]:
    start = time.thread_time()
    scale, point = observer.calculate_qparams()
    return float(scale), int(point), 1e3 * (time.thread_time() - start)


def quality_case(data: str, size: int, batches: int) -> list[dict[str, Any]]:
    torch.manual_seed(size + batches)
    seen = [DATA[data](torch.randn(size)) for _ in range(batches)]
    x = torch.cat(seen)
    raw, optima, rows = Raw(x), {}, []
    for name, (dtype, low, high, qscheme) in TYPES.items():
        arguments = dict(dtype=dtype, quant_min=low, quant_max=high, qscheme=qscheme)
        row: dict[str, Any] = dict(data=data, size=size, batches=batches, type=name)
        for side, cls in (("ours", HistogramObserver), ("peer", PeerObserver)):
            observer = cls(**arguments)
            for batch in seen:
                observer(batch)
            scale, point, row[f"{side}_ms"] = _search(observer)
            row[side] = float(sqnr(x, round_trip(x, scale, point, low, high, dtype)))
        symmetric = qscheme == torch.per_tensor_symmetric
        key = (high - low, symmetric)
        if key not in optima:
            scale, point = raw.best(low, high, symmetric)
            error = raw.error(scale.view(1), point.view(1), low, high)
            optima[key] = float(10 * torch.log10(raw.square / error))
        row["best"] = optima[key]
        rows.append(row)
    return rows


def quality() -> list[dict[str, Any]]:
    rows = []
    for data in DATA:
        for size, batches in SIZES:
            rows += quality_case(data, size, batches)
            print(_quality_line(rows[-len(TYPES) :]), flush=True)
    lead = [row["ours"] - row["peer"] for row in rows]
    short = sorted(row["best"] - row["ours"] for row in rows)
    print(
        f"{len(rows)} cases. Over the peer, dB: least {min(lead):+.2f}, "
        f"mean {statistics.mean(lead):+.2f}. Below the optimum, dB: most {short[-1]:.2f}, "
        f"mean {statistics.mean(short):.2f}, more than 0.3 in {sum(s > 0.3 for s in short)}."
    )
    for side in ("ours", "peer"):
        times = [row[f"{side}_ms"] for row in rows]
        print(f"search {side}: median {statistics.median(times):.2f} ms, most {max(times):.2f} ms")
    return rows


def _quality_line(rows: list[dict[str, Any]]) -> str:
    first = rows[0]
    cells = [
        f"{row['type']} {row['ours']:.2f} {row['ours'] - row['peer']:+.2f} "
        f"{row['ours'] - row['best']:+.2f}"
        for row in rows
    ]
    return f"{first['data']:15s} {first['size']:>7d}x{first['batches']} | " + " | ".join(cells)


def batch_search(count: int = 64) -> dict[str, float]:
    """Milliseconds for each observer when many are searched together."""
    found = {}
    for name, (dtype, low, high, qscheme) in TYPES.items():
        observers = []
        for seed in range(count):
            torch.manual_seed(seed)
            observer = HistogramObserver(
                dtype=dtype, quant_min=low, quant_max=high, qscheme=qscheme
            )
            observer(torch.randn(50_000))
            observers.append(observer)
        batched_qparams(observers)
        start = time.thread_time()
        batched_qparams(observers)
        found[name] = 1e3 * (time.thread_time() - start) / count
        print(f"search of {count} together, {name}: {found[name]:.2f} ms each")
    return found


# ------------------------------------------------------------------------------------------ cost

aten = torch.ops.aten
LAYERS = (aten.conv2d.default, aten.linear.default)
FUSED = (aten.batch_norm.default, aten.relu.default, aten.relu_.default, aten.hardtanh.default,
         aten.hardtanh_.default, aten.relu6.default)  # fmt: skip
SUMS = (aten.add.Tensor, aten.add_.Tensor)


def _end_of_chain(node: torch.fx.Node) -> torch.fx.Node:
    while len(node.users) == 1 and next(iter(node.users)).target in FUSED:
        node = next(iter(node.users))
    return node


def observed(model: nn.Module, inputs: tuple[Tensor, ...], make: Callable[[], Any]) -> nn.Module:
    """Return the exported model with an observer at the inputs and outputs of its layers."""
    module: Any = torch.export.export(model, inputs).module(check_guards=False)
    places: dict[torch.fx.Node, None] = {}
    for node in module.graph.nodes:
        if node.target in LAYERS + SUMS:
            places |= dict.fromkeys(a for a in node.args[:2] if _activation(a))
            places[_end_of_chain(node)] = None
    for index, node in enumerate(places):
        module.add_submodule(f"observer_{index}", make())
        with module.graph.inserting_after(node):
            call = module.graph.call_module(f"observer_{index}", (node,))
        node.replace_all_uses_with(call, delete_user_cb=lambda user, call=call: user is not call)
    module.recompile()
    return module


def _activation(node: Any) -> bool:
    if not isinstance(node, torch.fx.Node) or node.op == "get_attr":
        return False
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def cost(models: list[str], repeats: int) -> list[dict[str, Any]]:
    rows = []
    for name in models:
        model = NETS[name].build(0)
        inputs = [NETS[name].inputs(1, seed) for seed in range(4)]
        plain: Any = torch.export.export(model, inputs[0]).module(check_guards=False)
        sides = {
            "float": plain,
            "ours": observed(model, inputs[0], HistogramObserver),
            "peer": observed(model, inputs[0], lambda: PeerObserver(dtype=torch.int8)),
        }
        times: dict[str, list[float]] = {side: [] for side in sides}
        with torch.no_grad():
            for round_ in range(repeats + 2):
                for side, module in sides.items():
                    start = time.thread_time()
                    module(*inputs[round_ % len(inputs)])
                    times[side].append(1e3 * (time.thread_time() - start))
        medians = {side: statistics.median(values[2:]) for side, values in times.items()}
        count = sum(isinstance(m, HistogramObserver) for m in sides["ours"].modules())
        row = dict(model=name, observers=count, **{f"{s}_ms": m for s, m in medians.items()})
        row |= {f"{side}_ratio": medians[side] / medians["float"] for side in ("ours", "peer")}
        rows.append(row | {"raw_ms": times})
        print(
            f"{name:14s} {count:4d} observers, float {medians['float']:.1f} ms, "
            f"ours {row['ours_ratio']:.2f}x, peer {row['peer_ratio']:.2f}x",
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("quality", "search", "cost"))
    parser.add_argument("--models", nargs="+", default=["mobilenet_v2", "resnet50", "vit_s16"])
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    parts: dict[str, Callable[[], Any]] = {
        "quality": quality,
        "search": batch_search,
        "cost": lambda: cost(options.models, options.repeats),
    }
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for name, run in parts.items():
        if options.only in (None, name):
            result[name] = run()
    result["torch"] = torch.__version__
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
