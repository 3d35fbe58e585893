"""A network quantized for XNNPACK, in float and lowered."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from pt2q import convert_pt2e
from pt2q.deploy.executorch import Program, lower
from pt2q.quantizers import XNNPACKQuantizer, get_symmetric_quantization_config
from support.flow import calibrated


def quantized(
    model: nn.Module, *batches: tuple[Tensor, ...], dynamic: bool = False, **export: object
) -> nn.Module:
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=dynamic)
    exported = torch.export.export(model, batches[0], **export)
    return convert_pt2e(calibrated(exported, XNNPACKQuantizer().set_global(config), *batches))


@dataclass(frozen=True)
class Lowered:
    """A network and what it becomes; each is lowered when it is first asked for."""

    model: nn.Module
    converted: nn.Module
    inputs: tuple[Tensor, ...]

    @cached_property
    def floating(self) -> Program:
        return lower(self.model, self.inputs)

    @cached_property
    def program(self) -> Program:
        return lower(self.converted, self.inputs)
