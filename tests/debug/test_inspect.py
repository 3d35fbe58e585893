"""What a model is made of, against counts by hand."""

from __future__ import annotations

import pytest
import torch
from support.attention_nets import Bert, BertConfig
from support.control_flow_models import Cond, exported
from torch import Tensor, nn
from torch.nn import functional as F

from pt2q import debug
from pt2q.debug.inspection.macs import macs
from pt2q.quantizers import OnnxQDQQuantizer, XNNPACKQuantizer


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, groups=2, bias=False)
        self.up = nn.ConvTranspose2d(6, 2, 2, stride=2)
        self.head = nn.Linear(2, 5)
        self.odd = nn.Parameter(torch.ones(5))

    def forward(self, x: Tensor, k: Tensor) -> Tensor:
        x = self.up(self.conv(x)).mean((2, 3))
        return torch.erf(self.head(x)) @ k * self.odd.sum()


@pytest.fixture(scope="module")
def program() -> torch.export.ExportedProgram:
    batch = {0: torch.export.Dim("batch", min=2, max=64)}
    inputs = (torch.randn(3, 4, 8, 8), torch.randn(5, 7))
    return torch.export.export(Several().eval(), inputs, dynamic_shapes=(batch, None))


def test_multiply_accumulates_are_those_by_hand(program: torch.export.ExportedProgram) -> None:
    conv, up = 3 * 6 * 6 * 6 * (2 * 9), 3 * 6 * 6 * 6 * (2 * 4)
    found = macs(program.module(check_guards=False))
    assert found == {
        "conv2d": conv,
        "conv_transpose2d": up,
        "linear": 3 * 2 * 5,
        "matmul": 3 * 5 * 7,
    }


def test_attention_counts_both_products() -> None:
    q = torch.randn(1, 2, 6, 4)

    class Attention(nn.Module):
        def forward(self, q: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(q, q, q)

    module = torch.export.export(Attention(), (q,)).module()
    assert macs(module) == {"scaled_dot_product_attention": 2 * 2 * 6 * 6 * 4}


def test_inputs_operators_and_what_backends_do(program: torch.export.ExportedProgram) -> None:
    quantizers = {"xnnpack": XNNPACKQuantizer(), "ort": OnnxQDQQuantizer()}
    found = debug.inspect(program, quantizers)
    assert [(v.name, v.dtype, v.shape[1:]) for v in found.inputs] == [
        ("x", "float32", (4, 8, 8)),
        ("k", "float32", (7,)),
    ]
    assert isinstance(found.inputs[0].shape[0], str)
    assert found.parameters == 6 * 2 * 9 + 6 * 2 * 4 + 2 + 5 * 2 + 5 + 5
    assert found.macs == sum(o.macs for o in found.operators)
    xnnpack = found.to_dict()["backends"]["xnnpack"]
    assert xnnpack["quantized"] == sum(row["quantized"] for row in xnnpack["rows"])
    erf = next(row for row in xnnpack["rows"] if row["operator"] == "aten.erf.default")
    assert not erf["quantized"] and erf["reason"]["code"] in {r["code"] for r in xnnpack["reasons"]}
    assert 0 < xnnpack["macs_share"] <= 1
    assert found.to_json().startswith("{")


def test_text_is_within_80_columns(program: torch.export.ExportedProgram) -> None:
    both = debug.inspect(program, {"xnnpack": XNNPACKQuantizer(), "ort": OnnxQDQQuantizer()})
    one = debug.inspect(program, {"xnnpack": XNNPACKQuantizer()})
    for found in (both, one, debug.inspect(program)):
        assert max(map(len, found.text(80).splitlines())) <= 80
    assert "aten.conv2d.default" in str(both)
    assert "operators quantized" in one.text(80) and "left in float" in both.text(80)


def test_shares_count_operators_that_are_taken_apart() -> None:
    torch.manual_seed(0)
    inputs = torch.zeros(1, 8, dtype=torch.long), torch.ones(1, 8, dtype=torch.long)
    model = Bert(BertConfig(50, 8, 16, 1, 2)).eval()
    view = debug.inspect(torch.export.export(model, inputs), {"x": XNNPACKQuantizer()}).backends[0]
    linear = sum(n for name, n in view.macs.items() if name.startswith("linear"))
    assert view.share >= linear / sum(view.macs.values()) > 0.5


def test_bodies_of_control_flow_are_counted() -> None:
    found = debug.inspect(exported(Cond))
    by_name = {o.node: o.macs for o in found.operators}
    assert by_name["true_graph_0.linear"] > 0
