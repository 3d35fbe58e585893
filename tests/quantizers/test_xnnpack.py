"""What the XNNPACK quantizer decides, and why the rest stays in float."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.applied_functions import SEQUENCE, Apply, Encoder, conv, image
from torch import Tensor, nn
from torch.nn import functional as F

from pt2q.errors import AnnotationError
from pt2q.ir.graph import get_constant
from pt2q.ir.module import import_exported
from pt2q.ir.ops import LINEAR, is_op
from pt2q.quantizers import Report, XNNPACKQuantizer, get_symmetric_quantization_config, roles_of
from pt2q.spec.plan import build_plan

STATIC = get_symmetric_quantization_config(is_per_channel=True)


DYNAMIC = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)


GOLDEN = Path(__file__).parent.parent / "golden"


def decide(
    module: nn.Module, *args: Tensor, quantizer: XNNPACKQuantizer | None = None
) -> tuple[Report, str]:
    """The report and the plan of one model."""
    quantizer = quantizer or XNNPACKQuantizer()
    model = import_exported(torch.export.export(module.eval(), args))
    model = quantizer.transform_for_annotation(model)
    quantizer.annotate(model)
    quantizer.validate(model)
    return quantizer.report(), str(build_plan(model.graph))


def reasons(report: Report) -> dict[str, str]:
    return {row.node: row.how.removeprefix("float: ") for row in report.left_float}


class Branches(nn.Module):
    """Convolutions, an addition, a concatenation, pools and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv()
        self.left = conv()
        self.right = conv(groups=4)
        self.mix = conv(8, 8)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.stem(x)), 2)
        both = torch.cat([F.relu6(self.left(x)), x + self.right(x)], 1)
        pooled = F.adaptive_avg_pool2d(F.hardswish(self.mix(both)), 1)
        return torch.softmax(self.fc(torch.flatten(pooled, 1)), -1)


def test_golden_decisions() -> None:
    report, plan = decide(Branches(), image())
    path = GOLDEN / "xnnpack_branches.txt"
    text = f"{report}\n\n{plan}\n"
    assert text == path.read_text(), text


def test_qat_takes_batch_norms_into_the_chain() -> None:
    net = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), conv())
    qat = get_symmetric_quantization_config(is_per_channel=True, is_qat=True)
    report, _ = decide(net, image(), quantizer=XNNPACKQuantizer().set_global(qat))
    assert not report.left_float
    assert report["relu"].how == "int8 static, fused into conv2d"
    assert report["batch_norm"].how == "int8 static, fused into conv2d"
    assert reasons(decide(net, image())[0]).keys() == {"batch_norm", "relu"}


FLOAT: dict[str, tuple[Callable[..., Any], tuple[nn.Module, ...], Tensor, str]] = {
    "conv3d": (lambda m, x: m[0](x), (nn.Conv3d(2, 2, 1),), torch.randn(1, 2, 3, 3, 3), "3d"),
    "no batch": (lambda m, x: m[0](x), (conv(),), image(4), "no batch dimension"),
    "computed weight": (
        lambda m, x: F.linear(x, m[0].weight * x.mean()),
        (nn.Linear(8, 8),),
        image(),
        "its weight is computed",
    ),
    "double": (lambda m, x: m[0](x), (conv().double(),), image().double(), "float64"),
    "products": (lambda m, x: m[0](x) @ x, (nn.Linear(8, 8),), image(), "multiplies"),
    "scalar": (lambda m, x: m[0](m[0](x) * 2.0), (conv(),), image(), "is a scalar"),
    "alpha": (
        lambda m, x: m[0](torch.add(m[0](x), x, alpha=2)),
        (conv(),),
        image(),
        "alpha is 2",
    ),
    "mean": (
        lambda m, x: m[1](m[0](x).mean((2, 3))),
        (conv(), nn.Linear(4, 2)),
        image(),
        "keepdim",
    ),
    "pool": (lambda m, x: m[0](F.adaptive_avg_pool2d(m[0](x), 2)), (conv(),), image(), "size 1"),
    "dead end": (lambda m, x: F.gelu(m[0](x) + m[0](x)), (conv(),), image(), "read in float only"),
    "island": (
        lambda m, x: m[0](F.gelu(x) + F.silu(x)),
        (conv(),),
        image(),
        "inputs are computed in float",
    ),
    "written": (lambda m, x: m[0](x.add_(m[0](x))), (conv(),), image(), "writes in place into"),
    "scaled": (
        lambda m, x: torch.addmm(x[0, :3], x, m[0](x).t(), alpha=2),
        (nn.Linear(8, 8),),
        torch.randn(3, 8),
        "two activations",
    ),
    "layer norm": (
        lambda m, x: m[0](m[1](x)),
        (nn.Linear(8, 8), nn.LayerNorm(8)),
        image(),
        "no int8 kernel",
    ),
}


@pytest.mark.parametrize("name", FLOAT)
def test_what_stays_in_float_says_why(name: str) -> None:
    fn, layers, x, reason = FLOAT[name]
    found = reasons(decide(Apply(fn, *layers), x)[0])
    assert any(reason in text for text in found.values()), found


def test_an_addition_asked_for_by_name_is_quantized_between_float_operators() -> None:
    net = Apply(lambda m, x: torch.softmax(F.gelu(x) + F.silu(x), -1))
    quantizer = XNNPACKQuantizer().set_operator_type(torch.ops.aten.add, STATIC)
    report, _ = decide(net, image(), quantizer=quantizer)
    assert [row.node for row in report.quantized] == ["add"]


def test_a_follower_that_shall_stay_in_float_is_not_fused() -> None:
    net = nn.Sequential(conv(), nn.ReLU(), conv())
    fused, _ = decide(net, image(), quantizer=XNNPACKQuantizer().set_module_name("0", STATIC))
    assert fused["relu"].how == "int8 static, fused into conv2d"
    split, _ = decide(net, image(), quantizer=XNNPACKQuantizer().set_module_name("1", None))
    assert split["relu"].how == "float: module name '1' is set to None"


def test_residual_projections_are_dynamic() -> None:
    report, _ = decide(Encoder(), *SEQUENCE)
    how = {row.module: row.how for row in report.quantized}
    assert {path: text.split()[1].strip(",") for path, text in how.items()} == {
        "qkv": "static",
        "out": "dynamic",
        "up": "static",
        "down": "dynamic",
    }
    found = reasons(report)
    assert found["add"].startswith("an operand is an attention mask")
    assert found["add_1"] == found["add_2"] == "its result is read in float only"
    static, _ = decide(
        Encoder(), *SEQUENCE, quantizer=XNNPACKQuantizer(residual_projections="static")
    )
    assert {row.how.split(",")[0] for row in static.quantized} == {"int8 static"}


def test_dynamic_covers_linear_layers_and_convolutions_over_images() -> None:
    report, _ = decide(
        Apply(lambda m, x: m[1](m[0](x).sigmoid()), conv(), nn.Linear(8, 2)),
        image(),
        quantizer=XNNPACKQuantizer().set_global(DYNAMIC),
    )
    assert report["linear"].how == "int8 dynamic, weight int8 per-channel"
    assert report["conv2d"].how == "int8 dynamic, weight int8 per-channel"
    (why,) = reasons(report).values()
    assert why == "dynamic quantization covers linear layers and convolutions over images only"


def test_dynamic_weights_have_the_scales_that_kernels_take_unless_others_are_asked_for() -> None:
    assert get_symmetric_quantization_config(is_dynamic=True) == DYNAMIC
    assert get_symmetric_quantization_config() == get_symmetric_quantization_config(
        is_per_channel=False
    )


def test_validate_names_what_no_kernel_takes() -> None:
    per_tensor = get_symmetric_quantization_config(is_per_channel=False, is_dynamic=True)
    assert STATIC.input_activation is not None
    unsigned = replace(STATIC.input_activation, dtype=torch.uint8, quant_min=0, quant_max=255)
    for config, message in (
        (
            per_tensor,
            "weight in int8 .* per channel.*, but .* with one scale",
        ),
        (replace(DYNAMIC, output_activation=STATIC.output_activation), "output_activation"),
        (
            replace(STATIC, input_activation=unsigned),
            r"input_activation in int8 .* asks for uint8 \[0, 255\]",
        ),
    ):
        quantizer = XNNPACKQuantizer().set_global(config)
        with pytest.raises(AnnotationError, match=message):
            decide(nn.Linear(8, 8), image(), quantizer=quantizer)


def test_calls_that_share_a_bias_get_copies_of_it() -> None:
    net = Apply(lambda m, x: m[0](F.gelu(m[0](x))), nn.Linear(8, 8))
    exported = torch.export.export(net.eval(), (image(),))
    model = XNNPACKQuantizer().transform_for_annotation(import_exported(exported))
    linears = [roles_of(n) for n in model.graph.nodes if is_op(n, LINEAR)]
    assert linears[0].weight is linears[1].weight
    first, second = (r.bias for r in linears)
    assert first is not None and second is not None and first.target != second.target
    assert torch.equal(get_constant(model, first), get_constant(model, second))
    assert torch.equal(model(x := image()), net(x))
    qat = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_qat=True))
    model = qat.transform_for_annotation(import_exported(exported))
    assert len({r.bias for n in model.graph.nodes if is_op(n, LINEAR) for r in [roles_of(n)]}) == 1
