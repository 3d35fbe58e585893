"""The batch norm that undoes a scaling, beside the plain one in double precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pt2q.ir import ops

EPS, MOMENTUM = 1e-3, 0.1
NAMES = "x", "factor", "own_bias", "weight", "bias"


def arguments(shape: tuple[int, ...], offset: float) -> dict[str, Tensor]:
    torch.manual_seed(0)
    channels = shape[1]
    found = {name: torch.randn(channels) for name in NAMES}
    found["x"] = torch.randn(shape) + offset
    found["factor"] = found["factor"].sign() * (found["factor"].abs() + 0.1)
    return found


def plain(a: dict[str, Tensor], mean: Tensor, var: Tensor, training: bool) -> Tensor:
    along = (1, -1, *[1] * (a["x"].dim() - 2))
    y = a["x"] / a["factor"].reshape(along) + a["own_bias"].reshape(along)
    return F.batch_norm(y, mean, var, a["weight"], a["bias"], training, MOMENTUM, EPS)


def scaled(a: dict[str, Tensor], mean: Tensor, var: Tensor, training: bool) -> Tensor:
    values = (a[name] for name in NAMES)
    return ops.SCALED_BATCH_NORM(*values, mean, var, training, MOMENTUM, EPS)


def outcome(form, a: dict[str, Tensor], dtype: torch.dtype, training: bool) -> list[Tensor]:
    """Output, gradients and running statistics, in double precision."""
    a = {name: value.detach().to(dtype, copy=True).requires_grad_() for name, value in a.items()}
    channels = a["x"].shape[1]
    statistics = torch.linspace(-1, 1, channels).to(dtype), torch.linspace(1, 2, channels).to(dtype)
    y = form(a, *statistics, training)
    torch.manual_seed(1)
    y.backward(torch.randn(y.shape).to(dtype))
    return [t.detach().double() for t in (y, *(a[n].grad for n in NAMES), *statistics)]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("offset", [0.0, 3.0, 100.0])
@pytest.mark.parametrize("shape", [(16, 5), (6, 5, 11), (4, 5, 6, 7), (3, 5, 2, 3, 4)])
def test_it_is_the_plain_one(shape: tuple[int, ...], offset: float, training: bool) -> None:
    given = arguments(shape, offset)
    found = outcome(scaled, given, torch.float32, training)
    expected = outcome(plain, given, torch.float64, training)
    for name, a, b in zip(("y", *NAMES, "mean", "var"), found, expected, strict=True):
        margin = 1e-4 * (1.0 + offset) * max(1.0, float(b.abs().max()))
        torch.testing.assert_close(a, b, rtol=1e-4, atol=margin, msg=lambda m, n=name: f"{n}: {m}")


def test_one_value_per_channel_leaves_finite_statistics() -> None:
    mean, var = torch.zeros(3), torch.ones(3)
    given = arguments((1, 3, 1, 1), 0.0)
    assert torch.isfinite(scaled(given, mean, var, True)).all()
    assert torch.isfinite(mean).all() and torch.isfinite(var).all()
