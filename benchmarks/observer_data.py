"""Data of many shapes, and the best grid for it that a dense search finds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


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
        scale, point = self._coarse(low, high, symmetric)
        scale, point = self._least(scale, point, low, high)
        shifts = torch.zeros(1).double() if symmetric else torch.arange(-2, 3).double()
        for spread in (0.15, 0.03, 0.006):
            factors = 1 + spread * torch.linspace(-1, 1, 41).double()
            pairs = torch.cartesian_prod(scale * factors, (point + shifts).clamp(low, high))
            scale, point = self._least(pairs[:, 0], pairs[:, 1], low, high)
        return scale, point

    def _coarse(self, low: int, high: int, symmetric: bool) -> tuple[Tensor, Tensor]:
        least, most = self.values[0].clamp(max=0), self.values[-1].clamp(min=0)
        if symmetric:
            reach = torch.maximum(-least / -low, most / high)
            scale = torch.logspace(0.02, -2.5, 400).double() * reach
            return scale, torch.zeros_like(scale)
        ratios = torch.cat([torch.logspace(0, -2.5, 40).double(), torch.zeros(1).double()])
        ends = torch.cartesian_prod(least * ratios, most * ratios)
        scale = (ends[:, 1] - ends[:, 0]) / (high - low)
        scale, ends = scale[scale > 0], ends[scale > 0]
        return scale, (low - ends[:, 0] / scale).round()

    def most_decibels(self, low: int, high: int, symmetric: bool) -> float:
        """The signal to quantization noise ratio of the best grid."""
        scale, point = self.best(low, high, symmetric)
        error = self.error(scale.view(1), point.view(1), low, high)
        return float(10 * torch.log10(self.square / error))

    def _least(self, scale: Tensor, point: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
        parts = zip(scale.split(256), point.split(256), strict=True)
        errors = torch.cat([self.error(s, z, low, high) for s, z in parts])
        best = errors.argmin()
        return scale[best], point[best]
