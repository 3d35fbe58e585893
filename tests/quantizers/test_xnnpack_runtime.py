"""Everything that is annotated for XNNPACK is delegated, and right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.applied_functions import SEQUENCE, Apply, Encoder, conv, image
from torch import Tensor, nn
from torch.nn import functional as F

from pt2q import convert_pt2e, prepare_pt2e
from pt2q.deploy.executorch import lowering
from pt2q.quantizers import XNNPACKQuantizer


def decibels(found: Tensor, expected: Tensor) -> float:
    noise = (found - expected).pow(2).sum()
    return float(10 * torch.log10(expected.pow(2).sum() / noise.clamp_min(1e-30)))


def run_in_runtime(
    converted: nn.Module, args: tuple[Tensor, ...]
) -> tuple[list[Tensor], Counter[str]]:
    """The outputs in ExecuTorch, lowered as it says, and the operators that were not delegated."""
    pytest.importorskip("executorch")
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    exported = torch.export.export(converted, args)
    with lowering._cheaper():
        edge = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    names = Counter(
        getattr(n.target, "__name__", "")
        for n in edge.exported_program().graph.nodes
        if n.op == "call_function"
    )
    program = Runtime.get().load_program(edge.to_executorch().buffer)
    method = program.load_method("forward")
    assert method is not None
    result = [x.clone() for x in method.execute(list(args))]
    for name in ("executorch_call_delegate", "getitem"):
        names.pop(name, None)
    return result, names


LOWERED: dict[str, tuple[Callable[..., Any], tuple[nn.Module, ...], Tensor]] = {
    "depthwise": (lambda m, x: F.relu6(m[0](x)), (conv(groups=4),), image()),
    "bounds": (lambda m, x: m[0](F.relu(m[0](x)).clamp(0, 1)), (conv(),), image()),
    "transposed": (
        lambda m, x: m[1](F.relu(m[0](x))),
        (nn.ConvTranspose2d(4, 4, 2, 2, groups=2), nn.ConvTranspose2d(4, 3, 3)),
        image(),
    ),
    "one dimension": (
        lambda m, x: m[1](F.relu(m[0](x))),
        (nn.Conv1d(4, 4, 3), nn.ConvTranspose1d(4, 2, 3)),
        torch.randn(32, 4, 9),
    ),
    "concatenation": (
        lambda m, x: m[2](torch.cat([m[0](x), m[1](x), x], 1)),
        (conv(), conv(), conv(12)),
        image(),
    ),
    "arithmetic": (
        lambda m, x: m[0]((y := m[0](x)) * m[1](x) - F.relu(y + x)),
        (conv(), conv()),
        image(),
    ),
    "gate": (
        lambda m, x: m[2]((y := m[0](x)) * torch.sigmoid(m[1](F.adaptive_avg_pool2d(y, 1)))),
        (conv(), nn.Conv2d(4, 4, 1), conv()),
        image(),
    ),
    "shuffle": (lambda m, x: m[1](F.channel_shuffle(m[0](x), 2)), (conv(), conv()), image()),
    "addmm": (
        lambda m, x: F.relu(torch.addmm(m[0].bias, x, m[0].weight)) @ m[0].weight,
        (nn.Linear(8, 8),),
        torch.randn(64, 8),
    ),
    "shared layer": (lambda m, x: m[0](F.gelu(m[0](x))), (nn.Linear(8, 8),), torch.randn(64, 8)),
    "shared bias": (lambda m, x: m[0](m[0](m[0](x))), (conv(),), image()),
}


def quantize(module: nn.Module, args: tuple[Tensor, ...], quantizer: XNNPACKQuantizer) -> nn.Module:
    prepared = prepare_pt2e(torch.export.export(module.eval(), args).module(), quantizer)
    with torch.no_grad():
        prepared(*args)
    return convert_pt2e(prepared)


class Together(nn.Module):
    """Networks that share nothing, each on its own input: lowered once, which takes the time."""

    def __init__(self) -> None:
        super().__init__()
        self.nets = nn.ModuleList(Apply(fn, *layers) for fn, layers, _ in LOWERED.values())

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(net(x) for net, x in zip(self.nets, inputs, strict=True))


@pytest.fixture(scope="module")
def results() -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """By name: in float, quantized in PyTorch, and in ExecuTorch."""
    net, inputs = Together(), tuple(x for _, _, x in LOWERED.values())
    converted = quantize(net, inputs, XNNPACKQuantizer())
    found, not_delegated = run_in_runtime(converted, inputs)
    assert not not_delegated
    with torch.no_grad():
        columns = net(*inputs), converted(*inputs), found
    return dict(zip(LOWERED, zip(*columns, strict=True), strict=True))


@pytest.mark.filterwarnings("ignore")  # of the lowering
@pytest.mark.parametrize("name", LOWERED)
def test_everything_annotated_is_delegated_and_right(
    name: str, results: dict[str, tuple[Tensor, Tensor, Tensor]]
) -> None:
    expected, eager, found = results[name]
    # One step of an int8 output is about 40 dB down; kernels may round a tie the other way.
    assert decibels(eager, expected) > 28
    assert decibels(found, expected) > decibels(eager, expected) - 1


@pytest.mark.filterwarnings("ignore")  # of the lowering
def test_static_and_dynamic_layers_run_in_one_model() -> None:
    net = Encoder()
    converted = quantize(net, SEQUENCE, XNNPACKQuantizer())
    found, not_delegated = run_in_runtime(converted, SEQUENCE)
    assert not any("linear" in name or "quantize" in name for name in not_delegated)
    with torch.no_grad():
        assert decibels(found[0], net(*SEQUENCE)) > 28
