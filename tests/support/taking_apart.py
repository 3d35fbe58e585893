"""Models imported and taken apart by one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pt2q.ir.module import QuantGraphModule, import_exported
from pt2q.passes import run_passes, verified_passes


def taken_apart(model: nn.Module, step: Any, *inputs: Any, **options: Any) -> QuantGraphModule:
    module = import_exported(torch.export.export(model, inputs, **options))
    with verified_passes():
        run_passes(module, [step])
    return module
