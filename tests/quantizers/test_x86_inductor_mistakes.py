"""What the x86 quantizer refuses, and what selects."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.small_quantizers import SmallQuantizer
from support.x86_inductor import Net, converted
from torch import nn
from torch.nn import functional as F

from pt2q import prepare_pt2e
from pt2q.deploy import executorch, inductor, onnx
from pt2q.errors import (
    AnnotationError,
    DataError,
    FlowError,
    LoweringError,
    NotExportedError,
    SaveError,
)
from pt2q.quantizers import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
    get_symmetric_quantization_config,
)

ROWS = (torch.randn(4, 32, generator=torch.Generator().manual_seed(2)),)


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
