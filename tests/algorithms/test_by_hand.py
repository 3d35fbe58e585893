"""Each algorithm called by hand, over quantizers of other libraries too."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as executorchs
from support.planted import calibrated, quality
from support.results import assert_same
from torch import Tensor, nn
from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as torchaos

from pt2q import QuantGraphModule, convert_pt2e
from pt2q.algorithms import ALGORITHMS, BiasCorrection
from pt2q.errors import DataError

pytestmark = pytest.mark.usefixtures("patterns_known")


class ConvAndLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up = nn.LayerNorm(12), nn.Linear(12, 24)
        self.conv, self.down = nn.Conv1d(6, 6, 3, padding=1), nn.Linear(24, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(self.conv(self.up(self.norm(x)).relu()).relu())
        return y


def _executorchs(is_per_channel: bool) -> Any:
    config = executorchs.get_symmetric_quantization_config(is_per_channel=is_per_channel)
    return executorchs.XNNPACKQuantizer().set_global(config)


def _torchaos() -> Any:
    config = torchaos.get_default_x86_inductor_quantization_config()
    return torchaos.X86InductorQuantizer().set_global(config)


QUANTIZERS: dict[str, Callable[[], Any]] = {
    "executorch": lambda: _executorchs(is_per_channel=True),
    "executorch-tensor": lambda: _executorchs(is_per_channel=False),
    "torchao": _torchaos,
}


@cache
def prepared(name: str) -> tuple[nn.Module, QuantGraphModule, list[Any]]:
    torch.manual_seed(1)
    network = ConvAndLinear().eval()
    batches = [(torch.randn(8, 6, 12),) for _ in range(6)]
    return network, calibrated(network, QUANTIZERS[name](), batches), batches


def _made(name: str) -> Any:
    return ALGORITHMS[name](steps=10) if name == "adaround" else ALGORITHMS[name]()


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_every_algorithm_over_quantizers_of_others(quantizer: str, algorithm: str) -> None:
    """From batches of any kind, with the same result to the bit, and a word about every layer."""
    network, model, batches = prepared(quantizer)
    plain, found = quality(network, model, batches), []
    for data in (batches, iter(batches)):
        changed = copy.deepcopy(model)
        report = _made(algorithm)(changed, data, seed=4)
        found.append(changed)
        assert quality(network, changed, batches) > plain - 0.5
        named = {row.layer for row in report.rows} | {item.name for _, item in report.passed}
        said = ", ".join(named)
        layers = ("linear", "linear_1") + (() if quantizer == "torchao" else ("conv1d",))
        assert algorithm in ("batch_norm", "equalization") or all(n in said for n in layers)
    assert_same(*(convert_pt2e(one).state_dict() for one in found))


def test_what_are_no_batches() -> None:
    _, model, _ = prepared("executorch")
    with pytest.raises(DataError, match="there is none"):
        BiasCorrection()(copy.deepcopy(model), iter([]))
    with pytest.raises(DataError, match=r"given as \[batch\]"):
        BiasCorrection()(copy.deepcopy(model), torch.randn(8, 6, 12))
