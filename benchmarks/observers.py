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
from collections.abc import Callable
from typing import Any

import measuring
import torch
from observer_quality import batch_search, quality
from support.nets import NETS
from torch import Tensor, nn
from torchao.quantization.pt2e.observer import HistogramObserver as PeerObserver

from pt2q.observers import HistogramObserver

RESULT = measuring.RESULTS / "observers.json"

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
    """Each network without observers, with ours and with the peer's, in turn."""
    return [cost_of(name, repeats) for name in models]


def cost_of(name: str, repeats: int) -> dict[str, Any]:
    model = NETS[name].build(0)
    inputs = [NETS[name].inputs(1, seed) for seed in range(4)]
    sides: dict[str, Any] = {
        "float": torch.export.export(model, inputs[0]).module(check_guards=False),
        "ours": observed(model, inputs[0], HistogramObserver),
        "peer": observed(model, inputs[0], lambda: PeerObserver(dtype=torch.int8)),
    }
    calls = {side: lambda turn, m=module: m(*inputs[turn % 4]) for side, module in sides.items()}
    with torch.no_grad():
        times = measuring.in_turn(calls, repeats, warm_up=2)
    medians = {side: 1e3 * measuring.median(values) for side, values in times.items()}
    count = sum(isinstance(m, HistogramObserver) for m in sides["ours"].modules())
    row = dict(model=name, observers=count, **{f"{s}_ms": m for s, m in medians.items()})
    row |= {f"{side}_ratio": medians[side] / medians["float"] for side in ("ours", "peer")}
    print(
        f"{name:14s} {count:4d} observers, float {medians['float']:.1f} ms, "
        f"ours {row['ours_ratio']:.2f}x, peer {row['peer_ratio']:.2f}x",
        flush=True,
    )
    return row | {"raw_ms": {side: [1e3 * t for t in values] for side, values in times.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("quality", "search", "cost"))
    parser.add_argument("--models", nargs="+", default=["mobilenet_v2", "resnet50", "vit_s16"])
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    measuring.set_up()
    parts: dict[str, Callable[[], Any]] = {
        "quality": quality,
        "search": batch_search,
        "cost": lambda: cost(options.models, options.repeats),
    }
    result = measuring.read_json(RESULT)
    for name, run in parts.items():
        if options.only in (None, name):
            result[name] = run()
    measuring.write_json(RESULT, result | {"torch": torch.__version__})


if __name__ == "__main__":
    main()
