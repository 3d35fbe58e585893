"""What runtimes read is memory: a tensor that has none of the plain kind is refused before."""

from __future__ import annotations

import torch
from torch import Tensor


def why_no_memory(x: Tensor) -> str:
    """Why a runtime cannot read a tensor from the processor's memory; "" if it can.

    Some runtimes read what the tensor's address says all the same, and end the process.

    Args:
        x: what a loaded file is given.
    """
    if x.is_nested:
        return "is a nested tensor, and has to be a dense one"
    if x.layout is not torch.strided:
        return f"is {str(x.layout).removeprefix('torch.')}, and has to be dense: give x.to_dense()"
    if x.device.type != "cpu":
        return f"is on device {x.device}, and has to be in the processor's memory"
    if x.untyped_storage().device.type != "cpu":  # as that of a FakeTensor
        return f"is a {type(x).__name__}, which has no memory"
    return ""
