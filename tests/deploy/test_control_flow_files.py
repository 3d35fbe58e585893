"""Control flow with quantized bodies in files: right in ONNX, and said by ExecuTorch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.control_flow_models import Cond, Scan, WhileLoop, exported, inputs
from torch import nn

from pt2q import QuantGraphModule, Quantizer, convert_pt2e, prepare_pt2e
from pt2q.deploy import executorch, onnx
from pt2q.errors import FlowError, LoweringError
from pt2q.quantizers import OnnxQDQQuantizer, XNNPACKQuantizer

pytestmark = pytest.mark.usefixtures("no_gradients")


def _converted(kind: type[nn.Module], quantizer: Quantizer) -> QuantGraphModule:
    prepared = prepare_pt2e(exported(kind), quantizer)
    for x in inputs():
        prepared(x)
    return convert_pt2e(prepared)


@pytest.mark.parametrize("kind", [Cond, WhileLoop, Scan])
def test_in_onnx_runtime(kind: type[nn.Module], tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    converted = _converted(kind, OnnxQDQQuantizer.onnxruntime())
    onnx.export(converted, (inputs()[0],), tmp_path / "m.onnx")
    session = onnx.load(tmp_path / "m.onnx", fuse=False)
    for x in inputs():
        expected = converted(x)
        (found,) = session(x)
        step = 0.02 * expected.abs().max()
        torch.testing.assert_close(found, expected, atol=float(step), rtol=0)


def test_executorch_says_which_bodies_it_cannot_run() -> None:
    pytest.importorskip("executorch")
    converted = _converted(Cond, XNNPACKQuantizer())
    with pytest.raises(LoweringError, match=r"it runs true_graph_0, false_graph_0 by control flow"):
        executorch.lower(converted, (inputs()[0],))


def test_a_program_is_not_converted() -> None:
    with pytest.raises(FlowError, match="this program was never prepared; call prepare_pt2e"):
        convert_pt2e(exported(Cond))  # type: ignore[arg-type]
