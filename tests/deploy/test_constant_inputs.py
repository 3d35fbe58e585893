"""What depends on no input, such as learned queries, is right in the runtime in every mode."""

from __future__ import annotations

import pytest
import torch
from support.small_quantizers import FunctionQuantizer
from torch import Tensor, nn
from torch.fx import Node

from pt2q import QuantizationAnnotation, convert_pt2e, prepare_pt2e, sqnr
from pt2q.deploy import executorch
from pt2q.errors import LoweringError
from pt2q.quantizers import XNNPACKQuantizer, get_symmetric_quantization_config

pytest.importorskip("executorch")
X = torch.linspace(-2, 2, 256).reshape(2, 8, 16).sin()


class LearnedQueries(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.queries = nn.Parameter(torch.randn(1, 6, 16))
        self.q, self.k = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return (self.q(self.queries * 2) @ self.k(x).transpose(1, 2)).softmax(-1) @ x


@pytest.mark.parametrize("is_dynamic", [False, True])
def test_learned_queries(is_dynamic: bool) -> None:
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=is_dynamic)
    quantizer = XNNPACKQuantizer().set_global(config)
    model = LearnedQueries().eval()
    prepared = prepare_pt2e(torch.export.export(model, (X,)), quantizer)
    prepared(X)
    converted = convert_pt2e(prepared)
    (found,) = executorch.lower(converted, (X,)).load()(X)
    assert sqnr(model(X), found) > 25
    linear, other = (row for row in quantizer.report().rows if "linear" in row.operator)
    assert other.quantized and linear.quantized is not is_dynamic
    if is_dynamic:
        assert linear.reason is not None and linear.reason.code == "nothing-to-measure"


def test_a_quantizer_that_measures_a_constant_is_refused_when_lowered() -> None:
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)

    def annotate(node: Node) -> QuantizationAnnotation | None:
        if node.target is not torch.ops.aten.linear.default:
            return None
        specs = config.input_activation, config.weight
        return QuantizationAnnotation(dict(zip(node.args[:2], specs, strict=True)))  # type: ignore[arg-type]

    program = torch.export.export(LearnedQueries().eval(), (X,))
    converted = convert_pt2e(prepare_pt2e(program, FunctionQuantizer(annotate)))
    with pytest.raises(LoweringError, match="mul depends on no input of the model"):
        executorch.lower(converted, (X,))
