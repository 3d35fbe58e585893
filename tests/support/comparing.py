"""A float model, its quantized one, and the values of their nodes, for tests of comparison."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from pt2q import convert_pt2e
from pt2q.ir.module import QuantGraphModule
from pt2q.quantizers import XNNPACKQuantizer
from support.flow import calibrated
from support.settling import settled


class Mlp(nn.Module):
    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).relu()
        return x


class ConvBn(nn.Module):
    """Several outputs, one of integers; one layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.twice, self.head = nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.bn(self.conv(x)).relu().mean((2, 3))
        x = self.head(self.twice(self.twice(x)))
        return x, x.argmax(1)


def build(kind: Callable[[], nn.Module], *shape: int, batches: int = 3):
    """A model, its exported program and some inputs."""
    torch.manual_seed(0)
    model = settled(kind(), mean=0.3, shift=0.3)
    inputs = [torch.randn(*shape) for _ in range(batches)]
    return model, torch.export.export(model, (inputs[0],)), inputs


def convert(program, inputs, config=None, **options) -> QuantGraphModule:
    quantizer = XNNPACKQuantizer()
    quantizer = quantizer if config is None else quantizer.set_global(config)
    ready = calibrated(program, quantizer, *((x,) for x in inputs))
    return convert_pt2e(ready, **options)


class Values(Interpreter):
    """The value of each node, and what the first dequantize behind it gives."""

    def __init__(self, model: GraphModule) -> None:
        super().__init__(model)
        self.values: dict[str, Tensor] = {}

    def run_node(self, n: Node):
        value = super().run_node(n)
        self.values[n.name] = value
        return value

    def seen(self, name: str) -> Tensor:
        node = next(n for n in self.module.graph.nodes if n.name == name)
        quantize = [u for u in node.users if "quantize_per_tensor" in str(u.target)]
        if not quantize:
            return self.values[name]
        return self.values[next(iter(quantize[0].users)).name]


def run(model: GraphModule, *inputs) -> Values:
    values = Values(model)
    with torch.no_grad():
        values.run(*inputs)
    return values


def hooked(model: nn.Module, name: str, inputs: list[Tensor]) -> list[Tensor]:
    """The outputs of a module of the eager model."""
    found: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_hook(lambda m, i, o: found.append(o))
    with torch.no_grad():
        for x in inputs:
            model(x)
    handle.remove()
    return found
