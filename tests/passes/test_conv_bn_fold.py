"""Folding for inference: the function stays, or the batch norm does."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pt2q.ir.graph import dump
from pt2q.ir.module import QuantGraphModule, import_exported
from pt2q.passes import FoldConvBatchNorm, run_passes, verified_passes

CONVS = {
    "conv1d": (nn.Conv1d, nn.BatchNorm1d, (8,)),
    "conv2d": (nn.Conv2d, nn.BatchNorm2d, (7, 6)),
    "conv3d": (nn.Conv3d, nn.BatchNorm3d, (4, 5, 4)),
    "transposed1d": (nn.ConvTranspose1d, nn.BatchNorm1d, (8,)),
    "transposed2d": (nn.ConvTranspose2d, nn.BatchNorm2d, (5, 6)),
    "transposed3d": (nn.ConvTranspose3d, nn.BatchNorm3d, (3, 4, 3)),
}


def settle(model: nn.Module) -> nn.Module:
    """Statistics and affine parameters that are not the initial ones."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.running_mean is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.2, 3.0)
            if module.affine:
                nn.init.uniform_(module.weight, -2.0, 2.0)
                nn.init.normal_(module.bias)
    return model.eval()


def imported(model: nn.Module, *inputs: torch.Tensor, decompose: bool = False) -> QuantGraphModule:
    program = torch.export.export(model, inputs)
    return import_exported(program.run_decompositions() if decompose else program)


def fold(model: QuantGraphModule) -> QuantGraphModule:
    with verified_passes():
        return run_passes(model, [FoldConvBatchNorm()])


def count(model: QuantGraphModule) -> int:
    return sum("batch_norm" in str(n.target) for n in model.graph.nodes)


def reasons(model: QuantGraphModule) -> str:
    return "\n".join(map(str, model.record.notes))


def assert_folds(model: nn.Module, x: torch.Tensor, **kwargs: bool) -> QuantGraphModule:
    expected = model(x)
    graph = imported(model, x, **kwargs)
    fold(graph)
    assert count(graph) == 0, reasons(graph)
    torch.testing.assert_close(graph(x), expected, rtol=1e-5, atol=1e-5)
    return graph


def assert_stays(model: nn.Module, x: torch.Tensor, reason: str) -> None:
    graph = imported(model, x)
    before = dump(graph)
    fold(graph)
    assert dump(graph) == before
    assert reason in reasons(graph)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("kind", CONVS)
def test_every_convolution(kind: str, groups: int) -> None:
    conv, bn, size = CONVS[kind]
    for bias, affine, eps in [(True, True, 1e-5), (False, True, 0.5), (True, False, 1e-3)]:
        layer = conv(4, 8, 3, stride=2, groups=groups, bias=bias)
        model = settle(nn.Sequential(layer, bn(8, eps=eps, affine=affine), nn.ReLU()))
        assert_folds(model, torch.randn(2, 4, *size))


@given(
    kind=st.sampled_from(sorted(CONVS)),
    groups=st.sampled_from([1, 2, 3]),
    width=st.integers(1, 3),
    bias=st.booleans(),
    affine=st.booleans(),
    eps=st.sampled_from([0.0, 1e-5, 1.0]),
    same=st.booleans(),
    decompose=st.booleans(),
)
@settings(max_examples=12, deadline=None)
def test_any_configuration(kind, groups, width, bias, affine, eps, same, decompose) -> None:
    conv, bn, size = CONVS[kind]
    options = {"padding": "same"} if same and "transposed" not in kind else {}
    layer = conv(2 * groups, width * groups, 3, groups=groups, bias=bias, **options)
    model = settle(nn.Sequential(layer, bn(width * groups, eps=eps, affine=affine)))
    assert_folds(model, torch.randn(2, 2 * groups, *size), decompose=decompose)


@pytest.mark.parametrize("bias", [True, False])
def test_linear(bias: bool) -> None:
    model = settle(nn.Sequential(nn.Linear(5, 6, bias=bias), nn.BatchNorm1d(6)))
    assert_folds(model, torch.randn(4, 5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    model = settle(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).to(dtype)
    graph = fold(imported(model, torch.randn(1, 3, 5, 5, dtype=dtype)))
    assert count(graph) == 0
    assert {p.dtype for p in graph.parameters()} == {dtype}


def test_golden() -> None:
    model = settle(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()))
    graph = fold(imported(model, torch.randn(1, 3, 5, 5)))
    assert dump(graph).splitlines() == [
        "%_0_weight = get_attr(0.weight)",
        "%input_1 = placeholder(input)",
        "%_0_bias = get_attr(0.bias)",
        "%conv2d = aten.conv2d.default(%input_1, %_0_weight, %_0_bias)",
        "%relu = aten.relu.default(%conv2d)",
        "return [%relu]",
    ]
    bias = next(n for n in graph.graph.nodes if n.target == "0.bias")
    assert bias.meta["val"].shape == (4,)
    assert bias.meta["from_node"]
    assert sorted(dict(graph.named_parameters())) == ["0.bias", "0.weight"]
    assert not dict(graph.named_buffers())


def test_the_given_model_is_not_written() -> None:
    model = settle(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    program = torch.export.export(model, (torch.randn(1, 3, 5, 5),))
    module = program.module()
    before = copy.deepcopy(module.state_dict())
    fold(import_exported(module))
    after = module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_requires_grad_is_kept() -> None:
    model = settle(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    model[0].weight.requires_grad_(False)
    graph = fold(imported(model, torch.randn(1, 3, 5, 5)))
    assert not any(p.requires_grad for p in graph.parameters())


class SharedWeight(nn.Module):
    """One convolution under two batch norms, and once without."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.one, self.other = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.one(self.conv(x)) + 2 * self.other(self.conv(x)) + 3 * self.conv(x)


def test_shared_weight_is_folded_into_copies() -> None:
    model = settle(SharedWeight())
    graph = assert_folds(model, torch.randn(2, 3, 6, 6))
    assert torch.equal(graph.conv.weight, model.conv.weight)
    assert sorted(dict(graph.named_parameters())) == [
        "conv.bias",
        "conv.bias_1",
        "conv.bias_2",
        "conv.weight",
        "conv.weight_1",
        "conv.weight_2",
    ]


def test_shared_batch_norm_is_folded_into_each() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(2))
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for conv in self.convs:
                x = self.bn(conv(x))
            return x

    assert_folds(settle(Model()), torch.randn(2, 3, 4, 4))


def test_tied_tensors_stay_tied_elsewhere() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(3, 3, 1, bias=False) for _ in range(3))
            self.b.weight = self.c.weight = self.a.weight
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(self.b(self.bn(self.a(x))))

    assert_folds(settle(Model()), torch.randn(2, 3, 4, 4))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return self.bn(y) + y


class Computed(Twice):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(torch.conv2d(x, self.conv.weight.tanh()))


class Mutated(Twice):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("w", torch.randn(4, 3, 3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn(torch.conv2d(x, self.w))
        self.w.mul_(0.5)
        return y


def test_what_is_not_the_same_function_stays() -> None:
    image = torch.randn(2, 3, 6, 6)
    assert_stays(settle(Twice()), image, "is also read by add")
    assert_stays(settle(Computed()), image, "is computed by tanh")
    assert_stays(settle(Mutated()), image, "written in the forward pass")
    assert_stays(settle(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3))), image, "not a convolution")
    no_stats = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    assert_stays(settle(no_stats), image, "no running statistics")
    training = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert_stays(training.train(), image, "training mode")
    sequence = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(3))
    assert_stays(settle(sequence), torch.randn(2, 3, 5), "dimension")
    unbatched = nn.Sequential(nn.Conv1d(3, 4, 1), nn.BatchNorm1d(6))
    assert_stays(settle(unbatched), torch.randn(3, 6), "dimension")


def test_numbers_that_overflow_stay() -> None:
    model = settle(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=0.0)))
    model[1].running_var[1] = 0.0
    assert_stays(model, torch.randn(2, 3, 6, 6), "not be finite")


def test_nothing_to_do() -> None:
    graph = imported(nn.Conv2d(3, 4, 3).eval(), torch.randn(2, 3, 6, 6))
    assert FoldConvBatchNorm()(graph) is False
