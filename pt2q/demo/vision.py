"""Two more networks for the demo's digits, of the kinds that are hard to quantize."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VIT = Path(__file__).with_name("vit.pt")
MOBILENET_V3 = Path(__file__).with_name("mobilenet_v3.pt")

_PATCH, _TOKENS, _WIDTH, _DEPTH, _HEADS, _CLASSES = 4, 64, 96, 4, 4, 10


class Attention(nn.Module):
    """Every token looks at every other."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(_WIDTH, _WIDTH) for _ in range(3))
        self.mix = nn.Linear(_WIDTH, _WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) to the same."""
        q, k, v = (
            layer(x).unflatten(-1, (_HEADS, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        weights = (q @ k.transpose(-1, -2) * (_WIDTH // _HEADS) ** -0.5).softmax(-1)
        mixed: Tensor = self.mix((weights @ v).transpose(1, 2).flatten(2))
        return mixed


class Block(nn.Module):
    """Attention and a feed-forward part, each behind a norm and added to what comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(_WIDTH), Attention()
        self.wider = nn.LayerNorm(_WIDTH)
        self.up, self.down = nn.Linear(_WIDTH, 4 * _WIDTH), nn.Linear(4 * _WIDTH, _WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) to the same."""
        x = x + self.attention(self.norm(x))
        added: Tensor = x + self.down(F.gelu(self.up(self.wider(x))))
        return added


class DigitViT(nn.Module):
    """A vision transformer: (batch, 1, 32, 32) images to (batch, 10) logits."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, _WIDTH, _PATCH, _PATCH)
        self.position = nn.Parameter(0.02 * torch.randn(1, _TOKENS, _WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(_DEPTH)))
        self.norm, self.classifier = nn.LayerNorm(_WIDTH), nn.Linear(_WIDTH, _CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.position
        logits: Tensor = self.classifier(self.norm(self.blocks(tokens)).mean(1))
        return logits


class Squeeze(nn.Module):
    """Weigh channels by what all places together say (Hu et al. 2018)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.narrow, self.widen = nn.Conv2d(width, width // 4, 1), nn.Conv2d(width // 4, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width, h, w) to the same."""
        gates = F.hardsigmoid(self.widen(F.relu(self.narrow(F.adaptive_avg_pool2d(x, 1)))))
        return x * gates


# (kernel, hidden channels, channels, squeezed, hardswish, stride), after table 2 of Howard et al.
# 2019, "Searching for MobileNetV3"
_STAGES = (
    (3, 16, 16, True, False, 1),
    (3, 64, 24, False, False, 2),
    (3, 88, 24, False, False, 1),
    (5, 96, 40, True, True, 2),
    (5, 160, 40, True, True, 1),
    (5, 160, 64, True, True, 2),
    (5, 256, 64, True, True, 1),
)


class Bottleneck(nn.Module):
    """Expand, filter depthwise, squeeze, project; add the input if it fits."""

    def __init__(
        self,
        width: int,
        kernel: int,
        hidden: int,
        out: int,
        squeezed: bool,
        hard: bool,
        stride: int,
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_normed(nn.Conv2d(width, hidden, 1, bias=False), hard),
            *_normed(_depthwise(hidden, kernel, stride), hard),
            Squeeze(hidden) if squeezed else nn.Identity(),
            nn.Conv2d(hidden, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.residual = stride == 1 and width == out

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width, h, w) to (batch, out, h / stride, w / stride)."""
        y: Tensor = self.body(x)
        return x + y if self.residual else y


def _depthwise(width: int, kernel: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(width, width, kernel, stride, kernel // 2, groups=width, bias=False)


def _normed(conv: nn.Conv2d, hard: bool) -> list[nn.Module]:
    return [conv, nn.BatchNorm2d(conv.out_channels), nn.Hardswish() if hard else nn.ReLU()]


class DigitMobileNetV3(nn.Module):
    """MobileNetV3's blocks: (batch, 1, 32, 32) images to (batch, 10) logits."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = _normed(nn.Conv2d(1, 16, 3, padding=1, bias=False), True)
        width = 16
        for kernel, hidden, out, squeezed, hard, stride in _STAGES:
            layers.append(Bottleneck(width, kernel, hidden, out, squeezed, hard, stride))
            width = out
        layers += _normed(nn.Conv2d(width, 256, 1, bias=False), True)
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(256, 128), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(128, _CLASSES)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Classify images."""
        pooled = F.adaptive_avg_pool2d(self.features(x), 1).flatten(1)
        logits: Tensor = self.classifier(pooled)
        return logits
