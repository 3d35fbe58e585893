"""X86InductorQuantizer and pt2q.deploy.inductor: what Inductor compiles is run, and compared."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.nets import NETS
from support.samples import images
from support.small_quantizers import PER_TOKEN, UNSIGNED, SmallQuantizer
from torch import nn
from torch.nn import functional as F

from pt2q import convert_pt2e, prepare_pt2e, prepare_qat_pt2e, sqnr
from pt2q.deploy import executorch, inductor, onnx
from pt2q.errors import (
    AnnotationError,
    DataError,
    FlowError,
    InputShapeError,
    LoweringError,
    NotExportedError,
)
from pt2q.files import SaveError
from pt2q.ir.module import import_exported
from pt2q.quantizers import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
    get_symmetric_quantization_config,
)


class Net(nn.Module):
    """Layers to choose from; `function` says how they are joined."""

    def __init__(self, function) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 1)
        self.conv1d = nn.Conv1d(8, 8, 3)
        self.up = nn.ConvTranspose2d(8, 8, 2, 2)
        self.linear = nn.Linear(32, 32)
        self.linear2 = nn.Linear(32, 32)
        self.position = nn.Parameter(torch.randn(4, 32))
        self.function = function

    def forward(self, *args):
        return self.function(self, *args)


IMAGE = (torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(1)),)
ROWS = (torch.randn(4, 32, generator=torch.Generator().manual_seed(2)),)
DYNAMIC = get_default_x86_inductor_quantization_config(is_dynamic=True)


def converted(function, inputs, quantizer=None):
    model = function if isinstance(function, nn.Module) else Net(function)
    model = model.eval()
    prepared = prepare_pt2e(torch.export.export(model, inputs), quantizer or X86InductorQuantizer())
    prepared(*inputs)
    return model, convert_pt2e(prepared)


# ------------------------------------------------------------------ what is fused


@pytest.mark.parametrize(
    ("activation", "post_op"),
    [
        (F.relu, "relu"),
        (F.relu6, "hardtanh"),
        (F.hardswish, "hardswish"),
        (F.silu, "swish"),
    ],
)
def test_convolution_takes_in_what_follows_and_writes_uint8(activation, post_op):
    _, model = converted(lambda n, x: n.conv2(activation(n.conv(x))), IMAGE)
    report = inductor.fusion_report(model, IMAGE)
    assert not report.not_fused
    assert report["conv2d"].detail == f"{post_op}, writes uint8"
    assert report["conv2d_1"].kernel == "onednn.qconv"


def test_residual_addition_runs_in_the_convolution():
    def residual(n, x):
        x = F.relu(n.conv(x))
        x = F.relu(n.conv2(n.conv(x)) + x)
        return n.conv(x)

    _, model = converted(residual, IMAGE)
    report = inductor.fusion_report(model, IMAGE)
    assert [row.detail for row in report if row.computes] == [
        "relu, writes uint8",
        "writes uint8",
        "sum, relu, writes uint8",
        "writes float32",
    ]
    assert report["add"].detail == "fused into conv2d_2"


def test_pools_and_concatenation_stay_in_integers_between_convolutions():
    def chain(n, x):
        x = F.max_pool2d(F.relu(n.conv(x)), 2)
        x = n.conv2(torch.cat([x, F.relu(n.conv2(x))], 1)[:, :8])
        return F.adaptive_avg_pool2d(n.conv(x), 1).flatten(1)

    quantizer = X86InductorQuantizer()
    _, model = converted(chain, IMAGE, quantizer)
    report = inductor.fusion_report(model, IMAGE)
    assert not report.not_fused
    assert report["conv2d"].detail == "relu, writes uint8"
    assert quantizer.report()["max_pool2d"].quantized


@pytest.mark.parametrize("dynamic", [False, True])
def test_linear_layers_take_in_relu_and_gelu(dynamic):
    quantizer = X86InductorQuantizer(DYNAMIC if dynamic else None)
    _, model = converted(
        lambda n, x: n.linear2(F.gelu(n.linear(F.relu(n.linear2(x))))), ROWS, quantizer
    )
    report = inductor.fusion_report(model, ROWS)
    assert len(report.fused) == 3
    details = [row.detail.split(",")[0] for row in report.fused]
    assert details[:2] == ["relu", "gelu"]


def test_reasons_are_given_for_what_stays_in_float():
    def several(n, x):
        return n.up(n.conv(x)), n.conv1d(x[0]), torch.matmul(x, x.transpose(-1, -2))

    quantizer = X86InductorQuantizer()
    _, model = converted(several, IMAGE, quantizer)
    rows = {row.operator: row.how for row in quantizer.report().left_float}
    assert "transposed" in rows["aten.conv_transpose2d.input"]
    assert "two activations" in rows["aten.matmul.default"]
    report = inductor.fusion_report(model, IMAGE)
    assert {row.operator for row in report.fused} == {"aten.conv2d.default", "aten.conv1d.default"}

    _, per_token = converted(lambda n, x: n.linear(x), ROWS, SmallQuantizer(PER_TOKEN))
    row = inductor.fusion_report(per_token, ROWS)["linear"]
    assert not row.kernel
    assert "per token" in row.detail


def reasons(function, inputs, quantizer=None):
    quantizer = quantizer or X86InductorQuantizer()
    quantizer.annotate(import_exported(torch.export.export(Net(function).eval(), inputs)))
    return {row.node: row.how.removeprefix("float: ") for row in quantizer.report().left_float}


def test_reasons_say_what_is_before_an_activation():
    found = reasons(lambda n, x: n.conv2(F.gelu(n.conv(x))), IMAGE)
    assert found == {
        "gelu": "Inductor's convolutions take in relu, relu6, hardtanh, hardswish and silu only"
    }
    found = reasons(lambda n, x: n.linear2(F.silu(n.linear(x))), ROWS)
    assert found == {"silu": "Inductor's linear layers take in relu and gelu only"}
    found = reasons(lambda n, x: (lambda y: n.conv2(F.relu(y)) + y)(n.conv(x)), IMAGE)
    assert found["relu"] == "others read the result of conv2d too"
    found = reasons(lambda n, x: F.relu(n.conv(x[0])) + n.conv(x).sum(0), IMAGE)
    assert found["relu"] == "conv2d before it stays in float"
    found = reasons(lambda n, x: n.conv2(F.relu(x.sin())), IMAGE)
    assert found["relu"] == "it does not directly follow a convolution or linear layer"


def test_reasons_say_what_is_wrong_with_an_addition():
    found = reasons(lambda n, x: n.conv2(n.conv(x) + x), IMAGE)
    assert found["add"].startswith("it adds the input of a convolution to its result")
    found = reasons(lambda n, x: n.conv2((lambda y: y + y.sin())(n.conv(x))), IMAGE)
    assert found["add"].startswith("the result of a convolution has other readers too")
    found = reasons(lambda n, x: n.conv2(x.sin() + x.cos()), IMAGE)
    assert found["add"].startswith("no operand comes straight from a convolution")


def test_products_of_activations_are_rounded_where_asked_for():
    def attention(n, x):
        return n.linear2(torch.matmul(n.linear(x), x.transpose(-1, -2)) @ x)

    default = get_default_x86_inductor_quantization_config()
    quantizer = X86InductorQuantizer().set_global(default)
    found = reasons(attention, ROWS, quantizer)
    assert set(found.values()) == {"Inductor multiplies two activations in float"}
    quantizer.set_function_type_qconfig(torch.matmul, default)
    assert reasons(attention, ROWS, quantizer) == {}
    _, model = converted(attention, ROWS, quantizer)
    report = inductor.fusion_report(model, ROWS)
    assert {row.operator for row in report.not_fused} == {"aten.matmul.default"}
    assert all("two activations in float" in row.detail for row in report.not_fused)
    out = inductor.compile(model)(*ROWS)
    assert sqnr(model(*ROWS), out) > 50


@pytest.mark.parametrize("dynamic", [False, True])
def test_linear_layers_on_vectors_stay_in_float(dynamic):
    quantizer = X86InductorQuantizer(DYNAMIC if dynamic else None)
    found = reasons(lambda n, x: n.linear2(n.linear(x[0])), ROWS, quantizer)
    assert found == dict.fromkeys(("linear", "linear_1"), "its input has no batch dimension")


def test_a_product_too_small_for_a_kernel_is_named():
    small = nn.Sequential(nn.Linear(16, 16))
    _, model = converted(small, (torch.randn(1, 16),))
    (row,) = inductor.fusion_report(model, (torch.randn(1, 16),)).not_fused
    assert row.detail.startswith("one row times so small a weight")
    _, model = converted(nn.Sequential(nn.Linear(17, 16)), (torch.randn(1, 17),))
    assert len(inductor.fusion_report(model, (torch.randn(1, 17),)).fused) == 1


def test_one_scale_per_weight_and_tied_weights_are_fused_too():
    def twice(n, x):
        return n.conv(F.relu(n.conv(x)))

    _, model = converted(twice, IMAGE, SmallQuantizer(UNSIGNED, "per_tensor"))
    assert len(inductor.fusion_report(model, IMAGE).fused) == 2


def test_quantization_aware_training_ends_in_the_same_kernels():
    model = nn.Sequential(
        nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)
    )
    quantizer = X86InductorQuantizer(get_default_x86_inductor_quantization_config(is_qat=True))
    prepared = prepare_qat_pt2e(torch.export.export(model.train(), IMAGE), quantizer)
    prepared(*IMAGE)
    report = inductor.fusion_report(convert_pt2e(prepared), IMAGE)
    assert [row.detail for row in report.fused] == ["relu, writes uint8", "writes float32"]


def test_attention_keeps_its_masks_and_integers():
    net = NETS["small_bert"]
    quantizer = X86InductorQuantizer()
    _, model = converted(net.build(), net.inputs(2), quantizer)
    report = inductor.fusion_report(model, net.inputs(2))
    assert len(report.fused) == 13
    assert not report.not_fused


# ------------------------------------------------------------------ compiled and run


def test_compiled_network_computes_what_the_converted_one_does():
    net = NETS["small_mobilenet"]
    model, quantized = converted(net.build(), net.inputs(2), X86InductorQuantizer())
    inputs = net.inputs(2)
    before = (torch._inductor.config.freezing, torch.is_grad_enabled())
    compiled = inductor.compile(quantized)
    with pytest.raises(FlowError, match="first call"):
        _ = compiled.fusion
    result = compiled(*inputs)
    assert (torch._inductor.config.freezing, torch.is_grad_enabled()) == before
    assert sqnr(quantized(*inputs), result) > 60
    assert sqnr(model(*inputs), result) > 15
    assert not compiled.fusion.not_fused
    assert torch.equal(compiled(*inputs), result)
    with pytest.raises(InputShapeError):
        compiled(*images(2, 48))


def sums(n, x, y, z):
    """Every way a kernel might add into memory that is not its own."""
    return (
        x + n.linear(x),
        n.linear2(x) + y,
        F.relu(n.linear(y) + z.clone()),
        F.relu(n.linear2(y) + n.position),
        n.linear(z) + n.position,
    )


SUMS = tuple(torch.randn(4, 32, generator=torch.Generator().manual_seed(i)) for i in range(3))


def check_sums(run, model):
    expected = model(*SUMS)
    for _ in range(3):  # a constant that is added into shows from the second call on
        given = tuple(x.clone() for x in SUMS)
        for result, wanted in zip(run(*given), expected, strict=True):
            torch.testing.assert_close(result, wanted, rtol=0, atol=1e-5)
        assert all(torch.equal(a, b) for a, b in zip(given, SUMS, strict=True))


def test_compiled_sums_leave_inputs_and_parameters_alone():
    _, model = converted(sums, SUMS)
    compiled = inductor.compile(model)
    check_sums(compiled, model)
    assert any("sum" in row.detail for row in compiled.fusion)


def test_a_new_shape_is_compiled_in_int8_too():
    model = Net(lambda n, x: n.linear(x)).eval()
    shapes = ({0: torch.export.Dim.AUTO},)
    exported = torch.export.export(model, ROWS, dynamic_shapes=(shapes,))
    prepared = prepare_pt2e(exported, X86InductorQuantizer())
    prepared(*ROWS)
    quantized = convert_pt2e(prepared)
    compiled = inductor.compile(quantized)
    for rows in (4, 9, 5):
        x = torch.randn(rows, 32)
        torch.testing.assert_close(compiled(x), quantized(x), rtol=0, atol=1e-5)
        assert len(compiled.fusion.fused) == 1


def test_package_runs_and_leaves_its_inputs_alone(tmp_path: Path):
    _, model = converted(sums, SUMS)
    path = inductor.package(model, SUMS, tmp_path / "new" / "model.pt2")
    assert [file.name for file in path.parent.iterdir()] == ["model.pt2"]
    check_sums(inductor.load_package(path), model)


class Inputs(nn.Module):
    """Images in any memory order, a nested input, a number that is compiled in, a keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x, y, k=2, *, z):
        return self.head(F.relu(self.conv(x)).mean((2, 3))) * k + y["q"].to(torch.float32) + z


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory):
    torch.manual_seed(0)
    image = torch.randn(1, 3, 8, 8).expand(4, 3, 8, 8)  # no stride of it may be compiled in
    args = (image, {"q": torch.randint(0, 3, (4, 4))}, 2)
    kwargs = {"z": torch.randn(1)}
    batch = torch.export.Dim("b", min=2, max=16)
    shapes = {"x": {0: batch}, "y": {"q": {0: batch}}, "k": None, "z": None}
    program = torch.export.export(Inputs().eval(), args, kwargs, dynamic_shapes=shapes)
    prepared = prepare_pt2e(program, X86InductorQuantizer())
    prepared(*args, **kwargs)
    model = convert_pt2e(prepared)
    path = tmp_path_factory.mktemp("package") / "inputs.pt2"
    inductor.package(model, args, path, kwargs=kwargs, dynamic_shapes=shapes)
    return model, inductor.load_package(path), args, kwargs


@pytest.mark.parametrize("batch", [2, 7, 16])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_a_package_takes_tensors_in_any_memory_order(packaged, batch, order):
    model, loaded, _, kwargs = packaged
    x = torch.randn(batch, 3, 8, 8).to(memory_format=order)
    y = {"q": torch.randint(0, 3, (4, batch)).t()}
    keep = x.clone(), y["q"].clone()
    assert sqnr(model(x, y, 2, **kwargs), loaded(x, y, 2, **kwargs)) > 100
    assert torch.equal(keep[0], x) and torch.equal(keep[1], y["q"])


def test_a_package_refuses_what_its_code_would_read_past(packaged):
    _, loaded, (_, y, _), kwargs = packaged
    image, table = torch.randn(4, 3, 8, 8), y["q"]
    cases = [
        ((image.double(), y, 2), "input 'x' is of type float32, found float64"),
        ((image.numpy(), y, 2), "input 'x' is a tensor of float32, found ndarray"),
        ((image[..., 1:], y, 2), "input 'x' has size 8 in dimension 3"),
        ((image[0], y, 2), "input 'x' has 4 dimensions"),
        ((image[:1], {"q": table[:1]}, 2), "input 'x' has size from 2 to 16 in dimension 0"),
        ((image, {"q": table[:3]}, 2), "input 'y_q' has size 4, as another input"),
        ((image, {"r": table}, 2), "nested as exported"),
        ((image, y, 3), "input 'k' was compiled in as 2, found 3"),
        ((image, y), "takes 4 input"),
    ]
    for args, message in cases:
        with pytest.raises(InputShapeError, match=message):
            loaded(*args, **kwargs)
    with pytest.raises(InputShapeError, match="other keyword inputs"):
        loaded(image, y, 2)
    assert loaded(image, y, 2, **kwargs).shape == (4, 4)


# ------------------------------------------------------------------ mistakes


def test_what_cannot_work_is_refused_by_name(tmp_path: Path):
    _, signed = converted(lambda n, x: n.linear(x), ROWS, SmallQuantizer())
    with pytest.raises(LoweringError, match="uint8"):
        inductor.compile(signed)
    with pytest.raises(SaveError, match="pt2"):
        inductor.package(signed, ROWS, tmp_path / "model.bin")
    broken = tmp_path / "broken.pt2"
    broken.write_bytes(b"not a package")
    for path in (broken, tmp_path / "missing.pt2"):
        with pytest.raises(DataError, match=path.name):
            inductor.load_package(path)


def test_configurations_without_a_kernel_are_refused():
    quantizer = X86InductorQuantizer().set_global(get_symmetric_quantization_config())
    with pytest.raises(AnnotationError, match="uint8"):
        prepare_pt2e(torch.export.export(Net(lambda n, x: n.linear(x)), ROWS), quantizer)


def test_names_types_and_functions_select():
    default = get_default_x86_inductor_quantization_config()
    quantizer = (
        X86InductorQuantizer()
        .set_global(default)
        .set_module_name_qconfig("linear2", None)
        .set_function_type_qconfig(F.conv2d, None)
    )
    with pytest.warns(match="matches nothing"):
        converted(lambda n, x: n.linear2(n.linear(x)), ROWS, quantizer)
    report = quantizer.report()
    assert report["linear"].quantized
    assert "linear2" in report["linear_1"].how


def test_reduced_range_uses_seven_bits():
    config = get_default_x86_inductor_quantization_config(reduce_range=True)
    assert config.input_activation is not None
    assert (config.input_activation.quant_min, config.input_activation.quant_max) == (0, 127)


def test_prepared_models_and_modules_are_refused_on_every_road(tmp_path: Path):
    model = nn.Linear(32, 4).eval()
    prepared = prepare_pt2e(torch.export.export(model, ROWS), X86InductorQuantizer())
    roads = (
        inductor.compile,
        lambda m: inductor.package(m, ROWS, tmp_path / "m.pt2"),
        lambda m: inductor.fusion_report(m, ROWS),
        lambda m: onnx.export(m, ROWS, tmp_path / "m.onnx"),
    )
    for road in (*roads, lambda m: executorch.lower(m, ROWS)):
        with pytest.raises(FlowError, match="prepared, not converted"):
            road(prepared)
    for road in roads:
        with pytest.raises(NotExportedError, match=r"Linear was never captured with torch\.export"):
            road(model)
    assert not list(tmp_path.iterdir())
