"""Networks quantized for ONNX, and sessions compared with them."""

from __future__ import annotations

import torch

from pt2q import convert_pt2e, sqnr
from support.flow import calibrated
from support.nets import NETS, Net


def converted(net: Net | str, quantizer):
    net = NETS[net] if isinstance(net, str) else net
    model, inputs = net.build(), net.inputs(2)
    ready = calibrated(torch.export.export(model, inputs), quantizer, inputs)
    return model, convert_pt2e(ready), inputs


def flat(result) -> list[torch.Tensor]:
    return [result] if isinstance(result, torch.Tensor) else list(result)


def check_same(session, model, inputs, least: float = 80.0) -> None:
    for result, wanted in zip(session(*inputs), flat(model(*inputs)), strict=True):
        assert sqnr(wanted, result) > least
