"""Networks quantized for ONNX, and sessions compared with them."""

from __future__ import annotations

import torch

from pt2q import convert_pt2e, prepare_pt2e, sqnr
from support.nets import NETS, Net


def converted(net: Net | str, quantizer):
    net = NETS[net] if isinstance(net, str) else net
    model, inputs = net.build(), net.inputs(2)
    prepared = prepare_pt2e(torch.export.export(model, inputs), quantizer)
    prepared(*inputs)
    return model, convert_pt2e(prepared), inputs


def flat(result) -> list[torch.Tensor]:
    return [result] if isinstance(result, torch.Tensor) else list(result)


def check_same(session, model, inputs, least: float = 80.0) -> None:
    for result, wanted in zip(session(*inputs), flat(model(*inputs)), strict=True):
        assert sqnr(wanted, result) > least
