"""The demo's network: MobileNetV2's blocks at the size of a handwritten digit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pt2q.errors import DataError

CHECKPOINT = Path(__file__).with_name("digits.pt")
IMAGE = 32

# (expansion, channels, repeats, stride), as in table 2 of Sandler et al. 2018
_STAGES = ((1, 16, 1, 1), (4, 32, 2, 2), (4, 64, 2, 2), (4, 160, 3, 2))
_STEM, _HEAD, _CLASSES = 32, 512, 10


class InvertedResidual(nn.Module):
    """Expand by a 1x1 convolution, filter depthwise, project linearly; add the input if it fits."""

    def __init__(self, c_in: int, c_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = c_in * expansion
        expand = _conv(c_in, hidden, 1) if expansion != 1 else nn.Identity()
        self.body = nn.Sequential(
            expand,
            _conv(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, c_out, 1, bias=False),
            nn.BatchNorm2d(c_out),
        )
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        """(batch, c_in, h, w) to (batch, c_out, h / stride, w / stride)."""
        y: Tensor = self.body(x)
        return x + y if self.residual else y


class DigitNet(nn.Module):
    """(batch, 1, 32, 32) images in [-1, 1] to (batch, 10) logits."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv(1, _STEM, 3)]
        width = _STEM
        for expansion, channels, repeats, stride in _STAGES:
            for index in range(repeats):
                step = stride if index == 0 else 1
                layers.append(InvertedResidual(width, channels, step, expansion))
                width = channels
        layers.append(_conv(width, _HEAD, 1))
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(_HEAD, _CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images."""
        x = F.adaptive_avg_pool2d(self.features(x), 1)
        logits: Tensor = self.classifier(self.dropout(torch.flatten(x, 1)))
        return logits


def _conv(c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.ReLU6())


def save_checkpoint(net: nn.Module, path: Path = CHECKPOINT) -> None:
    """Write the weights in half precision, which halves the file and costs no accuracy."""
    state = {k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()}
    torch.save(state, path)


Net = TypeVar("Net", bound=nn.Module)


@overload
def load_checkpoint(path: Path = CHECKPOINT) -> DigitNet: ...
@overload
def load_checkpoint(path: Path, make: Callable[[], Net]) -> Net: ...
def load_checkpoint(path: Path = CHECKPOINT, make: Callable[[], Any] = DigitNet) -> Any:
    """A trained network in eval mode.

    Args:
        path: what `save_checkpoint` wrote.
        make: makes the network that it is of.

    Raises:
        DataError: the checkpoint is missing or not of this network.
    """
    net = make()
    try:
        net.load_state_dict(torch.load(path, weights_only=True))
    except Exception as error:
        raise DataError(
            f"cannot load the demo's checkpoint {path}: {error}. "
            "Make it again with `python -m pt2q.demo.train`."
        ) from error
    return net.eval()
