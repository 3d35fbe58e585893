"""Blobs run one after the other: none waits for another that waits for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from pt2q import convert_pt2e, prepare_pt2e, sqnr
from pt2q.deploy import executorch
from pt2q.deploy.executorch.partitions import joined
from pt2q.quantizers import (
    QuantizationConfig,
    XNNPACKQuantizer,
    get_dynamic_activation_4bit_weight_config,
    get_symmetric_quantization_config,
)

pytest.importorskip("executorch")
X = torch.linspace(-2, 2, 512).reshape(1, 8, 64).sin()
DYNAMIC = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
INPUTS = X, torch.arange(8.0).reshape(1, 8, 1, 1)


class RootMeanSquare(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, size))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class NormedHeads(nn.Module):
    """Queries with a norm per head, turned by angles that are computed beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.per_head = RootMeanSquare(64), RootMeanSquare(32)
        self.q, self.k, self.o = (nn.Linear(64, 64) for _ in range(3))
        self.register_buffer("frequencies", torch.linspace(1, 0.01, 16))

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        angles = position * self.frequencies
        angles = torch.cat([angles, angles], -1)
        normed = self.before(x)
        q, k = (self.per_head(layer(normed).view(1, 8, 2, 32)) for layer in (self.q, self.k))
        q = q * angles.cos() + k * angles.sin()
        return self.o(q.reshape(1, 8, 64))


def test_norms_of_heads() -> None:
    torch.manual_seed(0)
    model = NormedHeads().eval()
    converted, program, found = deployed(model, INPUTS, DYNAMIC)
    assert sqnr(converted, found) > 60
    assert sqnr(model(*INPUTS), found) > 25
    assert program.delegation.quantized_left == ()


def deployed(
    model: nn.Module, inputs: tuple[Tensor, ...], config: QuantizationConfig
) -> tuple[Tensor, executorch.Program, Tensor]:
    """What the converted model gives, the lowered program, and what the runtime gives."""
    quantizer = XNNPACKQuantizer().set_global(config)
    prepared = prepare_pt2e(torch.export.export(model, inputs), quantizer)
    prepared(*inputs)
    converted = convert_pt2e(prepared)
    program = executorch.lower(converted, inputs)
    return converted(*inputs), program, program.load()(*inputs)[0]


class Output(nn.Module):
    def __init__(self, model: nn.Module, **kwargs: object) -> None:
        super().__init__()
        self.model, self.kwargs = model, kwargs

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.model(x, **self.kwargs)[0]
        return found


def qwen3() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """ExecuTorch's own joining has the angles' product and sine wait for each other here."""
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen3Config(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        attn_implementation="eager",
    )
    model = Output(transformers.Qwen3Model(config).eval(), use_cache=False)
    return model, (torch.arange(0, 64, 5).reshape(1, 13),)


def detr() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Also: the queries of its first decoder layer depend on no input."""
    transformers = pytest.importorskip("transformers")
    backbone = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        layer_type="basic",
        out_features=["stage2"],
    )
    config = transformers.DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_queries=8,
        attn_implementation="eager",
    )
    model = Output(transformers.DetrModel(config).eval())
    return model, (torch.linspace(-3, 3, 3 * 32 * 32).reshape(1, 3, 32, 32).sin(),)


@pytest.mark.slow
@pytest.mark.parametrize("network", [qwen3, detr])
@pytest.mark.parametrize(
    ("config", "least"),
    [(DYNAMIC, 25), (get_dynamic_activation_4bit_weight_config(), 8)],
    ids=["dynamic", "8da4w"],
)
def test_networks_that_executorch_alone_does_not_lower(
    network: Callable[[], tuple[nn.Module, tuple[Tensor, ...]]],
    config: QuantizationConfig,
    least: float,
) -> None:
    torch.manual_seed(0)
    model, inputs = network()
    converted, program, found = deployed(model, inputs, config)
    assert sqnr(converted, found) > 60
    assert sqnr(model(*inputs), found) > least
    assert program.delegation.quantized_left == ()


def graph_of(**reads: str) -> dict[str, Node]:
    """Operators by name, each reading those named."""
    graph = Graph()
    nodes = {"x": graph.placeholder("x")}
    for name, sources in reads.items():
        nodes[name] = graph.call_function(torch.cat, tuple(nodes[n] for n in sources.split()))
        nodes[name].name = name
    graph.output(tuple(nodes.values()))
    return nodes


def blobs(nodes: dict[str, Node], *groups: str) -> list[str]:
    found = joined(nodes["x"].graph, [[nodes[n] for n in group.split()] for group in groups])
    return [" ".join(sorted(node.name for node in blob)) for blob in found]


def test_pairs_that_fit_may_wait_for_each_other() -> None:
    """a1 -> p -> a2 and b1 -> q -> b2, crossed: either pair alone could be one blob."""
    nodes = graph_of(a1="x", b1="x", p="a1", q="b1", b2="p", a2="q")
    assert blobs(nodes, "a1", "b1", "a2", "b2") == ["a1 b1", "a2 b2"]


def test_a_blob_is_left_once() -> None:
    nodes = graph_of(a="x", b="a", p="b", c="a b", d="p c", q="x", e="q d")
    assert blobs(nodes, "a", "b", "c", "d", "e") == ["a b c", "d e"]


def test_groups_stay_together_behind_the_last_of_their_sources() -> None:
    nodes = graph_of(a="x", p="a", b="x", c="p", d="b")
    assert blobs(nodes, "a", "b c", "d") == ["a", "b c d"]


def test_groups_that_need_their_own_result_are_left() -> None:
    nodes = graph_of(a1="x", b1="a1", b2="x", a2="b2", c="a2")
    assert blobs(nodes, "a1 a2", "b1 b2", "c") == ["b1 b2", "c"]
    alone = graph_of(a1="x", p="a1", a2="p", c="a2")
    assert blobs(alone, "a1 a2", "c") == ["c"]
