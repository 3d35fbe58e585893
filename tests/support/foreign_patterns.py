"""ExecuTorch's quantizer captures sixteen patterns in each call: here once in a process."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from executorch.backends.xnnpack.quantizer import xnnpack_quantizer_utils as quantizer_utils
from torch.fx import GraphModule

_capture = quantizer_utils._get_aten_graph_module_for_pattern
_known: dict[Any, GraphModule] = {}


@contextmanager
def patterns_captured_once() -> Iterator[None]:
    """Within it the quantizer is given copies, for it writes into what it is given."""
    quantizer_utils._get_aten_graph_module_for_pattern = _copied
    try:
        yield
    finally:
        quantizer_utils._get_aten_graph_module_for_pattern = _capture


def _copied(pattern: Any, inputs: tuple[Any, ...], is_cuda: bool = False) -> GraphModule:
    # A pattern is told by what its function closes over: an operator and two choices.
    choices = tuple(cell.cell_contents for cell in pattern.fn.__closure__)
    key = (choices, tuple(x.shape for x in inputs), is_cuda)
    if key not in _known:
        _known[key] = _capture(pattern, inputs, is_cuda)
    return copy.deepcopy(_known[key])
