"""Layers of every kind with a batch norm behind them, and batches for them."""

from __future__ import annotations

import torch
from torch import nn

import pt2q
from pt2q.passes import verified_passes
from support.nodes import count

KINDS = {
    "conv1d": (nn.Conv1d, nn.BatchNorm1d, (9,)),
    "conv2d": (nn.Conv2d, nn.BatchNorm2d, (7, 6)),
    "conv3d": (nn.Conv3d, nn.BatchNorm3d, (4, 5, 4)),
    "transposed1d": (nn.ConvTranspose1d, nn.BatchNorm1d, (6,)),
    "transposed2d": (nn.ConvTranspose2d, nn.BatchNorm2d, (4, 5)),
    "transposed3d": (nn.ConvTranspose3d, nn.BatchNorm3d, (3, 2, 3)),
    "linear": (nn.Linear, nn.BatchNorm1d, ()),
}


# bias, affine, relu, eps, momentum, groups, same
CONFIGS = {
    "plain": (False, True, True, 1e-5, 0.1, 1, False),
    "bias": (True, True, False, 1e-3, 0.3, 1, False),
    "not_affine": (True, False, True, 1e-5, 0.1, 2, False),
    "depthwise": (False, True, True, 0.01, None, 4, True),
}


def build(kind: str, bias, affine, relu, eps, momentum, groups, same) -> nn.Sequential:
    layer, norm, _ = KINDS[kind]
    norm = norm(8, eps=eps, momentum=momentum, affine=affine)
    if kind == "linear":
        layers: list[nn.Module] = [nn.Linear(4, 8, bias=bias), norm]
    else:
        padding = {"padding": "same"} if same and "transposed" not in kind else {}
        layers = [layer(4, 8, 3, groups=groups, bias=bias, **padding), norm]
    if affine:
        nn.init.uniform_(norm.weight, -1.5, 1.5)
        nn.init.normal_(norm.bias)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    return nn.Sequential(*layers, *([nn.ReLU()] if relu else []))


def batch(kind: str, size: int = 6) -> torch.Tensor:
    return torch.randn(size, 4, *KINDS[kind][2])


def close(actual: torch.Tensor, expected: torch.Tensor, what: str = "") -> None:
    scale = max(float(expected.detach().abs().max()), 1e-2)
    torch.testing.assert_close(actual, expected, rtol=0, atol=3e-5 * scale, msg=what)


def train_together(model: nn.Module, prepared: nn.Module, kind: str, steps: int) -> None:
    """Both models take the same steps; every number is compared at every step."""
    parameters = dict(prepared.named_parameters())
    for _ in range(steps):
        x = batch(kind)
        expected, actual = model(x), prepared(x)
        close(actual, expected, "forward")
        weights = torch.randn_like(expected)
        model.zero_grad()
        prepared.zero_grad()
        (expected * weights).sum().backward()
        (actual * weights).sum().backward()
        largest = max(float(p.grad.abs().max()) for p in model.parameters())
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                grad = parameters[name].grad
                torch.testing.assert_close(
                    grad, parameter.grad, rtol=1e-3, atol=1e-5 * largest, msg=name
                )
                step = 0.01 * parameter.grad
                parameter -= step
                parameters[name] -= step
    for name, value in model.named_buffers():
        torch.testing.assert_close(prepared.get_buffer(name), value, rtol=1e-4, atol=1e-5, msg=name)


def check_fold(prepared: nn.Module, kind: str) -> None:
    """With rounding on: what is converted is what was trained."""
    prepared.train()
    for _ in range(3):
        prepared(batch(kind))
    prepared.apply(pt2q.disable_observer)
    prepared.eval()
    x = batch(kind)
    with verified_passes():
        converted = pt2q.convert_pt2e(prepared)
    assert count(converted, "batch_norm", "add_", "sqrt", "activation_post_process") == 0
    assert pt2q.sqnr(prepared(x), converted(x)) > 40
