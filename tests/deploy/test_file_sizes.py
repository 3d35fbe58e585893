"""Files are as large as the int8 weights, the biases and the scales in them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from pt2q import convert_pt2e, prepare_pt2e
from pt2q.quantizers import OnnxQDQQuantizer, XNNPACKQuantizer, get_symmetric_quantization_config

IMAGE = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def network() -> nn.Sequential:
    layers: list[nn.Module] = []
    for width, following in ((3, 64), (64, 256), (256, 256)):
        layers += [nn.Conv2d(width, following, 3, bias=False), nn.BatchNorm2d(following), nn.ReLU()]
    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 1000)]
    return nn.Sequential(*layers, *pooled).eval()


def least(model: nn.Module) -> int:
    """Bytes: one for each weight; four for each bias and each scale, one of each per channel."""
    layers = [m for m in model if isinstance(m, nn.Conv2d | nn.Linear)]
    return sum(m.weight.numel() + 8 * m.weight.shape[0] for m in layers)


def prepared(quantizer):
    made = prepare_pt2e(torch.export.export(network(), (IMAGE,)), quantizer)
    made(IMAGE)
    return convert_pt2e(made)


def written(kind: str, path: Path) -> int:
    if kind == "onnx":
        onnx = pytest.importorskip("pt2q.deploy.onnx")
        onnx.export(prepared(OnnxQDQQuantizer()), (IMAGE,), path)
        return path.stat().st_size
    executorch = pytest.importorskip("pt2q.deploy.executorch")
    config = get_symmetric_quantization_config(is_per_channel=True)
    model = prepared(XNNPACKQuantizer().set_global(config))
    return executorch.lower(model, (IMAGE,)).save(path).stat().st_size


@pytest.mark.parametrize("kind", ["pte", "onnx"])
def test_files_hold_no_more_than_they_must(kind: str, tmp_path: Path) -> None:
    expected = least(network())
    assert expected > 900_000
    assert expected <= written(kind, tmp_path / f"model.{kind}") <= 1.05 * expected
