"""Fused layers compute the bits and gradients of the eager ones."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from support.qat_layers import CONFIGS, batch, build, close
from support.qat_quantizer import ACTIVATION, QATQuantizer, prepare
from torch import nn


def fx_qconfig(unsigned: bool = False):
    import torch.ao.quantization as tq

    activation = tq.FusedMovingAvgObsFakeQuantize.with_args(
        observer=tq.MovingAverageMinMaxObserver,
        quant_min=0 if unsigned else -128,
        quant_max=255 if unsigned else 127,
        dtype=torch.quint8 if unsigned else torch.qint8,
        qscheme=torch.per_tensor_affine,
    )
    weight = tq.FusedMovingAvgObsFakeQuantize.with_args(
        observer=tq.MovingAveragePerChannelMinMaxObserver,
        quant_min=-127,
        quant_max=127,
        dtype=torch.qint8,
        qscheme=torch.per_channel_symmetric,
        averaging_constant=1.0,
    )
    return tq.QConfig(activation, weight)


FX_KINDS = {
    1: (nn.Conv1d, nn.BatchNorm1d, "ConvBnReLU1d"),
    2: (nn.Conv2d, nn.BatchNorm2d, "ConvBnReLU2d"),
    3: (nn.Conv3d, nn.BatchNorm3d, "ConvBnReLU3d"),
}


class Chain(nn.Module):
    """Three fused modules of torch and the fake quantizers between them."""

    def __init__(self, model: nn.Sequential, dims: int) -> None:
        super().__init__()
        import torch.ao.nn.intrinsic as fused
        import torch.ao.nn.intrinsic.qat as qat

        qconfig, name = fx_qconfig(), FX_KINDS[dims][2]
        blocks = []
        for i in range(0, len(model), 3):
            block = getattr(fused, name)(*copy.deepcopy(model[i : i + 3]).train())
            block.qconfig = qconfig
            blocks.append(getattr(qat, name).from_float(block))
        self.blocks = nn.ModuleList(blocks)
        self.quants = nn.ModuleList(qconfig.activation() for _ in range(len(blocks) + 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.quants[0](x)
        for block, quant in zip(self.blocks, self.quants[1:], strict=True):
            x = quant(block(x))
        return x


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_bits_are_those_of_the_eager_modules(dims: int, bias: bool) -> None:
    conv, norm, _ = FX_KINDS[dims]
    widths, layers = (3, 8, 8, 6), []
    for i in range(3):
        layers += [conv(widths[i], widths[i + 1], 3, padding=1, bias=bias), norm(widths[i + 1])]
        layers.append(nn.ReLU())
    model = nn.Sequential(*layers)
    theirs = Chain(model, dims)
    ours = prepare(model, torch.randn(8, 3, *(6,) * dims), fast=False)
    ours_sgd = torch.optim.SGD(ours.parameters(), lr=0.05, momentum=0.9)
    order = sorted(dict(model.named_parameters()))
    theirs_sgd = torch.optim.SGD(theirs.parameters(), lr=0.05, momentum=0.9)
    for _ in range(4):
        x = torch.randn(8, 3, *(6,) * dims)
        a, b = ours(x), theirs(x)
        assert torch.equal(a, b)
        for out, optimizer in ((a, ours_sgd), (b, theirs_sgd)):
            optimizer.zero_grad()
            out.square().mean().backward()
            optimizer.step()
    found = dict(ours.named_parameters())
    assert sorted(found) == order
    for i, block in enumerate(theirs.blocks):
        assert torch.equal(found[f"{3 * i}.weight"], block.weight)
        assert torch.equal(found[f"{3 * i + 1}.weight"], block.bn.weight)
        assert torch.equal(ours.get_buffer(f"{3 * i + 1}.running_var"), block.bn.running_var)


@pytest.mark.filterwarnings("ignore")
def test_bits_are_those_of_prepare_qat_fx() -> None:
    from torch.ao.quantization import QConfigMapping, quantize_fx
    from torch.ao.quantization.backend_config import get_native_backend_config

    layers = []
    for width in (3, 8):
        layers += [nn.Conv2d(width, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    model, example = nn.Sequential(*layers).train(), torch.randn(8, 3, 8, 8)
    unsigned = replace(ACTIVATION, dtype=torch.uint8, quant_min=0, quant_max=255)
    ours = prepare(model, example, quantizer=QATQuantizer(activation=unsigned), fast=False)
    mapping = QConfigMapping().set_global(fx_qconfig(unsigned=True))
    theirs = quantize_fx.prepare_qat_fx(
        copy.deepcopy(model), mapping, (example,), backend_config=get_native_backend_config()
    )
    assert sum("FakeQuantize" in type(m).__name__ for m in theirs.modules()) == 5
    pairs = [(m, torch.optim.Adam(m.parameters(), lr=0.01)) for m in (ours.train(), theirs.train())]
    for _ in range(4):
        x = torch.randn(8, 3, 8, 8)
        outputs = []
        for prepared, optimizer in pairs:
            optimizer.zero_grad()
            outputs.append(prepared(x))
            outputs[-1].square().mean().backward()
            optimizer.step()
        assert torch.equal(*outputs)


def test_gradient_is_the_straight_through_formula() -> None:
    """The fused form written once more, with `detach` for the rounding."""
    model = build("conv2d", *CONFIGS["bias"])
    conv, bn = model[0], model[1]
    quantizer = QATQuantizer(activation=None)
    prepared = prepare(model, batch("conv2d"), quantizer=quantizer)
    x = batch("conv2d")
    std = torch.sqrt(bn.running_var + bn.eps)
    s = (bn.weight / std).reshape(-1, 1, 1, 1)
    folded = conv.weight * s
    step = folded.detach().abs().amax((1, 2, 3), keepdim=True)
    step = torch.maximum(
        folded.detach().amin((1, 2, 3), keepdim=True).abs() / 128,
        folded.detach().amax((1, 2, 3), keepdim=True) / 127,
    ) * (255 / 254)
    levels = folded / step
    inside = (levels.round() >= -127) & (levels.round() <= 127)
    rounded = levels.round().clamp(-127, 127) * step
    folded = folded * inside
    y = torch.conv2d(x, folded + (rounded - folded).detach()) / s.reshape(1, -1, 1, 1)
    y = y + conv.bias.reshape(1, -1, 1, 1)
    mean, var = y.mean((0, 2, 3), keepdim=True), y.var((0, 2, 3), correction=0, keepdim=True)
    y = (y - mean) / torch.sqrt(var + bn.eps)
    expected = y * bn.weight.reshape(1, -1, 1, 1) + bn.bias.reshape(1, -1, 1, 1)
    actual = prepared(x)
    close(actual, expected)
    weights = torch.randn_like(expected)
    (expected * weights).sum().backward()
    (actual * weights).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            prepared.get_parameter(name).grad, parameter.grad, rtol=1e-3, atol=1e-3, msg=name
        )
