"""Convolution nets with hundreds of layers, of which preparing and converting is the cost."""

from __future__ import annotations

import torch
from support.convnets import conv_bn
from support.nets import Net, image_net
from torch import Tensor, nn
from torch.nn import functional as F


class DenseLayer(nn.Module):
    """Norm, relu, 1x1, norm, relu, 3x3, beside what came in."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, 4 * growth, 1, bias=False),
            nn.BatchNorm2d(4 * growth),
            nn.ReLU(),
            nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.body(x)], 1)


class DenseNet(nn.Module):
    """Huang et al. 2017, table 1; `depths` (6, 12, 48, 32) is DenseNet-201."""

    def __init__(self, depths: tuple[int, ...] = (6, 12, 48, 32), growth: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_bn(3, 2 * growth, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        channels = 2 * growth
        for stage, depth in enumerate(depths):
            for _ in range(depth):
                layers.append(DenseLayer(channels, growth))
                channels += growth
            layers += [nn.BatchNorm2d(channels), nn.ReLU()]
            if stage < len(depths) - 1:
                layers += [nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2)]
                channels //= 2
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.up(F.silu(self.down(F.adaptive_avg_pool2d(x, 1)))).sigmoid()


class MBConv(nn.Module):
    def __init__(self, c_in: int, c_out: int, expand: int, kernel: int, stride: int) -> None:
        super().__init__()
        hidden = c_in * expand
        widened = [conv_bn(c_in, hidden, 1), nn.SiLU()] if expand > 1 else []
        self.body = nn.Sequential(
            *widened,
            conv_bn(hidden, hidden, kernel, stride, groups=hidden),
            nn.SiLU(),
            SqueezeExcite(hidden, max(1, c_in // 4)),
            conv_bn(hidden, c_out, 1),
        )
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


class EfficientNet(nn.Module):
    """Tan and Le 2019, scaled as B4.

    A stage is (expansion, kernel, channels, repeats, stride).
    """

    STAGES = (
        (1, 3, 24, 2, 1),
        (6, 3, 32, 4, 2),
        (6, 5, 56, 4, 2),
        (6, 3, 112, 6, 2),
        (6, 5, 160, 6, 1),
        (6, 5, 272, 8, 2),
        (6, 3, 448, 2, 1),
    )

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_bn(3, 48, 3, 2), nn.SiLU()]
        width = 48
        for expand, kernel, channels, repeats, stride in self.STAGES:
            for i in range(repeats):
                layers.append(MBConv(width, channels, expand, kernel, stride if i == 0 else 1))
                width = channels
        layers += [conv_bn(width, 1792, 1), nn.SiLU()]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(1792, 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


LARGE: dict[str, Net] = {
    "efficientnet_b4": image_net(EfficientNet, 224),
    "densenet201": image_net(DenseNet, 224),
}
