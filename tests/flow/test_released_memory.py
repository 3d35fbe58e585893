"""What is dropped is given back: resident sizes of this process."""

from __future__ import annotations

import gc
import pickle
from pathlib import Path

import pytest
import torch
from support.small_quantizers import SmallQuantizer
from torch import Tensor, nn

from pt2q import convert_pt2e, prepare_pt2e
from pt2q.ir.storage.own_pages import empty_in_own_pages

STATUS = Path("/proc/self/status")
MEBIBYTE = 2**20


def resident() -> float:
    """In MiB."""
    gc.collect()
    return int(STATUS.read_text().split("RssAnon:")[1].split()[0]) / 1024


def folded(channels: int, size: int) -> tuple[torch.fx.GraphModule, Tensor]:
    """Prepared, with folded weights of ``9 * channels ** 2`` values each."""
    layers = []
    for _ in range(2):
        layers += [nn.Conv2d(channels, channels, 3, bias=False), nn.BatchNorm2d(channels)]
    x = torch.randn(1, channels, size, size)
    program = torch.export.export(nn.Sequential(*layers).eval(), (x,))
    prepared = prepare_pt2e(program, SmallQuantizer())
    prepared(x)
    return prepared, x


@pytest.mark.skipif(not STATUS.exists(), reason="asks Linux for the resident size")
def test_folded_weights_go_with_the_prepared_model() -> None:
    prepared, x = folded(512, 5)
    weights = sum(p.nbytes for n, p in prepared.named_parameters() if p.dim() == 4) / MEBIBYTE
    assert weights == 18.0
    converted = convert_pt2e(prepared)
    before = resident()
    del prepared
    assert before - resident() > 0.9 * weights
    assert converted(x).isfinite().all()


def test_a_tensor_in_its_own_pages_is_one_like_any_other() -> None:
    made = empty_in_own_pages(torch.Size((4, MEBIBYTE)), torch.float32)
    assert made is not None and made.is_contiguous() and not made.any()
    made.copy_(torch.arange(4.0)[:, None])
    assert torch.equal(pickle.loads(pickle.dumps(made)), made)
    assert empty_in_own_pages(torch.Size((4, 4)), torch.float32) is None
