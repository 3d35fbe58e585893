"""`find_sequential_partitions`: chains by module and by function, on exported graphs."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F

from pt2q import convert_pt2e, prepare_pt2e
from pt2q.quantizers import find_sequential_partitions
from pt2q.spec import QuantizationAnnotation, QuantizationSpec, Quantizer


class Net(nn.Module):
    """A convolution, batch norm and relu as modules, and again with functions."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.conv, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.twice, self.relu = nn.Linear(4, 4), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        y = F.relu(self.bn(self.conv(x)))
        x = (x + y).mean((2, 3))
        return self.relu(self.twice(self.twice(x)))


def graph(strict: bool = False) -> GraphModule:
    torch.manual_seed(0)
    program = torch.export.export(Net().eval(), (torch.randn(2, 3, 6, 6),), strict=strict)
    return program.module(check_guards=False)


def names(chains) -> list[list[list[str]]]:
    return [[[n.name for n in p.nodes] for p in chain] for chain in chains]


@pytest.mark.parametrize("strict", [False, True])
def test_modules_and_functions(strict: bool) -> None:
    gm = graph(strict)
    both = find_sequential_partitions(gm, [nn.Conv2d, nn.BatchNorm2d, nn.ReLU])
    assert names(both) == [
        [["conv2d"], ["batch_norm"], ["relu"]],
        [["conv2d_1"], ["batch_norm_1"], ["relu_1"]],
    ]
    assert names(find_sequential_partitions(gm, [F.conv2d, F.batch_norm, F.relu])) == names(both)
    modules = find_sequential_partitions(gm, [nn.Conv2d, nn.BatchNorm2d, nn.ReLU], False)
    assert names(modules) == names(both)[:1]
    functions = find_sequential_partitions(gm, [nn.Conv2d, nn.BatchNorm2d, F.relu], False)
    assert names(functions) == names(both)[1:]
    conv, _, relu = both[0]
    assert [n.name for n in conv.input_nodes] == ["x"]
    assert {str(n.target) for n in conv.params} == {"one.0.weight", "one.0.bias"}
    assert conv.source is nn.Conv2d and relu.output_nodes == relu.nodes


def test_operators_calls_of_one_module_and_repeated_types() -> None:
    gm = graph()
    for add in (torch.add, operator.add, operator.iadd):
        chains = find_sequential_partitions(gm, [nn.ReLU, add])
        assert names(chains) == [[["relu"], ["add"]], [["relu_1"], ["add"]]]
    assert names(find_sequential_partitions(gm, [nn.Linear])) == [[["linear"]], [["linear_1"]]]
    chains = find_sequential_partitions(gm, [nn.Linear, nn.Linear, nn.ReLU])
    assert names(chains) == [[["linear"], ["linear_1"], ["relu_2"]]]
    assert find_sequential_partitions(gm, [nn.Linear, nn.Conv2d]) == []


def test_containers_are_modules_too() -> None:
    ((first,),) = find_sequential_partitions(graph(), [nn.Sequential])
    assert [n.name for n in first.nodes] == ["conv2d", "batch_norm", "relu"]
    assert [n.name for n in first.output_nodes] == ["relu"] and len(first.params) == 6


def test_filter_and_mistakes() -> None:
    gm = graph()
    chains = find_sequential_partitions(
        gm, [nn.Conv2d, nn.BatchNorm2d], filter_fn=lambda n: n.name != "conv2d"
    )
    assert names(chains) == [[["conv2d_1"], ["batch_norm_1"]]]
    with pytest.raises(ValueError, match="at least one"):
        find_sequential_partitions(gm, [])
    with pytest.raises(ValueError, match="conv"):
        find_sequential_partitions(gm, ["conv"])


def test_decomposed_operators_stay_together() -> None:
    program = torch.export.export(Net().eval(), (torch.randn(2, 3, 6, 6),))
    gm = program.run_decompositions().module(check_guards=False)
    chains = find_sequential_partitions(gm, [nn.Linear, nn.ReLU])
    (chain,) = chains
    assert [str(n.target) for n in chain[0].nodes] == ["aten.permute.default", "aten.addmm.default"]
    assert [n.name for n in chain[0].output_nodes] == [chain[0].nodes[-1].name]
    assert {str(n.target) for n in chain[0].params} == {"twice.weight", "twice.bias"}


def test_beside_the_peer() -> None:
    """On strict graphs, where the peer finds modules, both find the same chains."""
    peer = pytest.importorskip("torchao.quantization.pt2e")
    gm = graph(strict=True)
    for wanted in ([nn.Conv2d, nn.BatchNorm2d], [nn.Conv2d, nn.BatchNorm2d, nn.ReLU], [nn.Linear]):
        theirs = [
            [[n.name for n in p.nodes if n.op != "get_attr"] for p in chain]
            for chain in peer.find_sequential_partitions(gm, wanted)
        ]
        assert theirs
        ours = names(find_sequential_partitions(gm, wanted))
        assert all(chain in ours for chain in theirs)


def test_a_quantizer_written_with_it() -> None:
    from pt2q import MinMaxObserver

    spec = QuantizationSpec(torch.int8, MinMaxObserver, -128, 127, torch.per_tensor_affine)

    class LinearRelu(Quantizer):
        def annotate(self, model: GraphModule) -> GraphModule:
            for linear, relu in find_sequential_partitions(model, [nn.Linear, nn.ReLU]):
                (node,), (out,) = linear.nodes, relu.nodes
                node.meta["quantization_annotation"] = QuantizationAnnotation({node.args[0]: spec})
                out.meta["quantization_annotation"] = QuantizationAnnotation({}, spec)
            return model

        def validate(self, model: GraphModule) -> None:
            pass

    gm, x = graph(), torch.randn(2, 3, 6, 6)
    prepared = prepare_pt2e(gm, LinearRelu())
    prepared(x)
    targets = [str(n.target) for n in convert_pt2e(prepared).graph.nodes]
    assert sum(".quantize_per_tensor" in t for t in targets) == 2
