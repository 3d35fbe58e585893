"""Quantize a small network with quantizers of ExecuTorch, and write down the graphs.

    python -m support.ported_quantizers RESULT [FOLDER]

A process of its own: modules that the folder has are loaded from there.
"""

from __future__ import annotations

import hashlib
import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

import pt2q
from pt2q.ir.graph import dump
from support.ported_stack import ROOT, take_from

BACKENDS = "executorch.backends."
CASES = (
    "Arm TOSA int8",
    "Arm TOSA int16 x 8",
    "Cadence default",
    "Cortex-M",
    "Example",
    "Qualcomm 8a8w per channel",
    "Qualcomm 16a4w",
    "Samsung A8W8",
    "Vulkan dynamic",
    "Vulkan int4 weights",
    "XNNPACK static",
    "XNNPACK QAT",
    "Core ML int8",
)


class Net(nn.Module):
    """Two convolutions with batch norms, a residual addition, and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.hidden, self.head = nn.Linear(32, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        x = torch.relu(self.second(x) + x)
        return self.head(torch.sigmoid(self.hidden(self.pool(x).flatten(1))))


def converted(case: Any, quantizer: Any) -> pt2q.QuantGraphModule:
    torch.manual_seed(0)
    net = Net().train(case.is_qat)
    batches = [(torch.randn(2, 3, 8, 8),) for _ in range(3)]
    exported = case.export(net, batches[0], quantizer)
    prepare = pt2q.prepare_qat_pt2e if case.is_qat else pt2q.prepare_pt2e
    prepared = prepare(exported, quantizer)
    pt2q.move_exported_model_to_eval(prepared)
    with torch.no_grad():
        for batch in batches:
            prepared(*batch)
        return pt2q.convert_pt2e(prepared)


def record(case: Any) -> dict[str, Any]:
    """Whose class the quantizer is of, the graph, and the bits of what it holds."""
    quantizer = case.make(import_module(BACKENDS + case.module))
    model = converted(case, quantizer)
    stored = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        stored.update(f"{name} {tensor.dtype}".encode())
        stored.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return {
        "is_ours": isinstance(quantizer, pt2q.Quantizer),
        "graph": dump(model),
        "stored": stored.hexdigest(),
    }


def main(result: str, folder: str | None = None) -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from other_quantizers import fetch_nothing
    from shipped_quantizers import CASES as KNOWN

    if folder is not None:
        take_from(Path(folder))
    fetch_nothing()
    known = {case.name: case for case in KNOWN}
    Path(result).write_text(json.dumps({name: record(known[name]) for name in CASES}))


if __name__ == "__main__":
    main(*sys.argv[1:])
