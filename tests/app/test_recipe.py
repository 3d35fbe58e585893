"""Recipes: what they say becomes what the quantizer does, and every mistake has its line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pt2q
from pt2q.app import cli, recipe
from pt2q.app.calibration import read_program
from pt2q.app.recipe import Override, Recipe, Settings, parse, template
from pt2q.app.targets import BACKENDS, backend_named
from pt2q.errors import DataError, RecipeError, UnmatchedRuleWarning
from pt2q.ir import ops
from pt2q.observers import standard as observers
from pt2q.quantizers import (
    OnnxQDQQuantizer,
    Report,
    TableQuantizer,
    X86InductorQuantizer,
    XNNPACKQuantizer,
)

DEFAULTS: dict[str, Callable[[], TableQuantizer]] = {
    "xnnpack": XNNPACKQuantizer,
    "x86": X86InductorQuantizer,
    "onnxruntime": OnnxQDQQuantizer.onnxruntime,
    "openvino": OnnxQDQQuantizer.openvino,
    "tensorrt": OnnxQDQQuantizer.tensorrt,
}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 16)
        self.down = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.relu(self.up(x)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.blocks = nn.Sequential(Block(), Block())
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 4)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.conv(image)).mean((2, 3))
        return self.head(torch.sin(self.norm(self.blocks(x))))


@pytest.fixture(scope="module")
def program() -> torch.export.ExportedProgram:
    torch.manual_seed(0)
    return torch.export.export(Net().eval(), (torch.randn(2, 3, 8, 8),))


def quantized(program: Any, quantizer: TableQuantizer) -> tuple[Report, Any]:
    prepared = pt2q.prepare_pt2e(program, quantizer)
    for seed in range(3):
        x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        prepared(x)
    return quantizer.report(), prepared


def rows(report: Report, module: str) -> list[str]:
    return [row.how for row in report if row.module == module]


# ------------------------------------------------------------------ defaults


def test_all_backends_are_covered() -> None:
    assert set(DEFAULTS) == set(BACKENDS)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_template_reproduces_the_default_quantizer(backend, program) -> None:
    text = template(backend)
    parsed = parse(text)
    assert parsed.backend == backend
    assert parsed.overrides == ()
    ours, prepared = quantized(program, parsed.quantizer())
    theirs, expected = quantized(program, DEFAULTS[backend]())
    assert str(ours) == str(theirs)
    x = torch.randn(2, 3, 8, 8)
    found = pt2q.convert_pt2e(prepared)(x)
    torch.testing.assert_close(found, pt2q.convert_pt2e(expected)(x), rtol=0, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_empty_recipe_is_the_default_too(backend, program) -> None:
    found, _ = quantized(program, parse(f'backend = "{backend}"').quantizer())
    expected, _ = quantized(program, DEFAULTS[backend]())
    assert str(found) == str(expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_key_of_the_template_is_used_and_none_is_missing(backend) -> None:
    keys = set(re.findall(r"^(\w+) = ", template(backend), re.M))
    assert keys == {
        "backend",
        *("mode", "weight_scales", "activation_dtype", "activation_range"),
        *("activation_observer", "weight_dtype", "weight_range"),
        *("modules", "module_types", "operators"),
    }


def test_the_commented_part_of_the_template_works() -> None:
    text = template()
    shown = re.sub(
        r"^# (\[\[override\]\]|module = .*|mode = .*|limit = .*)$", r"\1", text, flags=re.M
    )
    found = parse(shown)
    assert found.limit == 100
    assert found.overrides == (
        Override("module", "head", Settings("dynamic", **_given(found.default))),
    )


def _given(settings: Settings) -> dict[str, Any]:
    names = ("activation_dtype", "activation_range", "weight_range")
    return {name: getattr(settings, name) for name in names}


# ------------------------------------------------------------------ what it says


def test_skips_and_overrides(program) -> None:
    text = """
    backend = "xnnpack"
    [skip]
    modules = ["blocks.*.up"]
    operators = ["aten.add"]
    [[override]]
    module = "head"
    mode = "dynamic"
    [[override]]
    module_type = "torch.nn.Conv2d"
    weight_scales = "tensor"
    [[override]]
    module = "blocks.1.down"
    weight_range = [-8, 7]
    """
    report, _ = quantized(program, parse(text).quantizer())
    for block in (0, 1):
        (linear, *_) = rows(report, f"blocks.{block}.up")
        assert linear == "float: module name 'blocks.*.up' is set to None"
    assert rows(report, "head") == ["int8 dynamic, weight int8 per-channel"]
    assert rows(report, "conv") == ["int8 static, weight int8 per-tensor"]
    # What adds to a residual is quantized at run time: see the quantizer.
    assert rows(report, "blocks.0.down") == ["int8 dynamic, weight int8 per-channel"]
    assert rows(report, "blocks.1.down") == ["int8 dynamic, weight int4 per-channel"]
    adds = [row.how for row in report if "add" in row.operator]
    assert adds
    assert all("aten.add is set to None" in how for how in adds)


def test_a_default_of_float_quantizes_only_what_is_named(program) -> None:
    text = """
    [default]
    mode = "float"
    [[override]]
    operator = "aten.linear.default"
    mode = "static"
    """
    report, _ = quantized(program, parse(text).quantizer())
    assert {row.operator for row in report.quantized} >= {"aten.linear.default"}
    assert not any("conv" in row.operator for row in report.quantized)


@pytest.mark.parametrize(
    "name, cls",
    [
        ("histogram", observers.HistogramObserver),
        ("minmax", observers.MinMaxObserver),
        ("moving-average", observers.MovingAverageMinMaxObserver),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_observers(program, backend, name, cls) -> None:
    text = f'backend = "{backend}"\n[default]\nactivation_observer = "{name}"'
    prepared = pt2q.prepare_pt2e(program, parse(text).quantizer())
    used = {type(m) for m in prepared.modules() if isinstance(m, observers.ObserverBase)}
    assert cls in used
    for other in {observers.HistogramObserver, observers.MovingAverageMinMaxObserver} - {cls}:
        assert other not in used


def test_ranges(program) -> None:
    text = """
    backend = "onnxruntime"
    [default]
    activation_range = [0, 127]
    weight_range = [-64, 63]
    """
    _, prepared = quantized(program, parse(text).quantizer())
    converted = pt2q.convert_pt2e(prepared)
    limits = set()
    for node in converted.graph.nodes:
        if ops.is_op(node, ops.DEQUANTIZE):
            limits.add((ops.argument(node, "quant_min"), ops.argument(node, "quant_max")))
    assert limits == {(0, 127), (-64, 63)}


def test_command_line_options_change_the_default_only() -> None:
    found = parse('[[override]]\nmodule = "head"\nweight_scales = "channel"')
    changed = found.changed(mode="dynamic", weight_scales="tensor")
    assert (changed.default.mode, changed.default.weight_scales) == ("dynamic", "tensor")
    assert changed.overrides == found.overrides
    assert found.changed() == found


def test_recipes_are_values() -> None:
    assert parse(template()) == parse(template())
    assert len({Recipe(), Recipe("x86"), Recipe()}) == 2


def test_a_pattern_that_matches_nothing_warns(program) -> None:
    found = parse('[skip]\nmodules = ["block.*"]')
    with pytest.warns(UnmatchedRuleWarning, match=r"'block\.\*' matches nothing"):
        pt2q.prepare_pt2e(program, found.quantizer())


# ------------------------------------------------------------------ mistakes

MISTAKES = [
    ("backend = 'tpu'", r"line 1, backend: expected one of \"xnnpack\", \"x86\".*; found 'tpu'"),
    ("\nbackends = 'x86'", "line 2, backends: there is no such key; choose from backend, default"),
    ("[default]\n\nmode = 'dyn'", r'line 3, \[default\] mode: .*"static", "dynamic", "float"'),
    ("[default]\nmod = 'dynamic'", r"line 2, \[default\] mod: there is no such key; .*mode"),
    ("backend='tensorrt'\n[default]\nmode='dynamic'", r'\[default\] mode: .*"static", "float"'),
    ("[default]\nweight_scales = 'row'", 'weight_scales: .*"channel", "tensor"'),
    ("[default]\nactivation_dtype = 'uint8'", 'activation_dtype: expected one of "int8"'),
    ("backend='x86'\n[default]\nactivation_dtype = 'int8'", 'expected one of "uint8"'),
    ("[default]\nactivation_observer = 'entropy'", '"histogram", "minmax", "moving-average"'),
    ("[default]\nactivation_range = [0, 255]", r"two whole numbers .* within \[-128, 127\]"),
    ("[default]\nweight_range = [7, -8]", "low first"),
    ("[default]\nweight_range = [-7.0, 8]", "two whole numbers"),
    ("[default]\nweight_range = [1, 7]", "line 2.*a range that holds 0"),
    ("backend='tensorrt'\n[default]\nactivation_range = [10, 90]", "a range that holds 0"),
    ("backend='x86'\n[default]\nweight_scales = 'tensor'", 'expected one of "channel"; found'),
    (
        "[default]\nmode = 'float'\n[[override]]\nmodule = 'a'\nweight_range = [-8, 7]",
        r"line 3, \[\[override\]\] 1: it needs a mode, or 'a' stays in float",
    ),
    ("[default]\nweight_range = 'int4'", "line 2.*two whole numbers"),
    ("default = 'int8'", r"line 1, default: expected a table that begins with \[default\]"),
    ("[skip]\nmodules = 'head'", r"line 2, \[skip\] modules: expected a list of names"),
    ("[skip]\nmodules = [3]", "list of names"),
    ("[skip]\nmodules = ['']", "expected a name; found ''"),
    ("[skip]\nlayers = ['a']", r"\[skip\] layers: there is no such key; choose from modules"),
    ("[skip]\noperators = ['aten.ad']", r"operators: expected an operator, such as \"aten.add\""),
    ("[override]\nmodule = 'a'", r"line 1, override: .*begin with \[\[override\]\]"),
    ("[[override]]\nmode = 'float'", r"line 1, \[\[override\]\] 1: name what it is for"),
    ("[[override]]\nmodule = 'a'\noperator = 'aten.add'", "found module, operator"),
    (
        "[[override]]\nmodule = 'a'\n[[override]]\nmodule = 'b'\nmode = 'x'",
        r"line 5, \[\[override\]\] 2 mode",
    ),
    ("[[override]]\nmodule = 'a'\nskip = true", "no such key; choose from module, module_type"),
    ("[skip]\nmodules = ['a']\n[[override]]\nmodule = 'a'", "line 4.*say it once"),
    ("[calibration]\nlimit = 0", r"line 2, \[calibration\] limit: expected a whole number"),
    ("[calibration]\nlimit = true", "whole number"),
    ("mode = ", "no valid TOML: Invalid value"),
]


@pytest.mark.parametrize("text, message", MISTAKES)
def test_mistakes(text, message) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        parse(text, "my.toml")
    assert str(caught.value).startswith("my.toml")


def test_files(tmp_path) -> None:
    with pytest.raises(RecipeError, match=r"none\.toml: cannot be read"):
        recipe.load(tmp_path / "none.toml")
    with pytest.raises(RecipeError, match="cannot be read"):
        recipe.load(tmp_path)
    path = tmp_path / "odd.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match="cannot be read"):
        recipe.load(path)
    path.write_text(template("x86"))
    assert recipe.load(path) == parse(template("x86"))
    path.write_text(template("x86"), encoding="utf-8-sig")
    assert recipe.load(path) == parse(template("x86"))


def test_affine_ranges_need_not_hold_0() -> None:
    found = parse("backend = 'x86'\n[default]\nactivation_range = [10, 90]")
    assert found.default.activation_range == (10, 90)


def test_a_mode_the_backend_lacks() -> None:
    with pytest.raises(RecipeError, match=r"openvino does not run mode 'dynamic'.*static, float"):
        Recipe("openvino").changed(mode="dynamic").quantizer()


def test_scales_the_backend_lacks() -> None:
    with pytest.raises(RecipeError, match="x86 does not run weights with a scale per tensor"):
        Recipe("x86").changed(weight_scales="tensor").quantizer()


def test_unknown_backends() -> None:
    with pytest.raises(DataError, match="unknown backend 'tpu': choose from xnnpack, x86"):
        backend_named("tpu")
    with pytest.raises(DataError, match="choose from"):
        template("tpu")


@pytest.mark.parametrize(
    "name, found",
    [
        ("aten.add.Tensor", torch.ops.aten.add.Tensor),
        ("aten.add", torch.ops.aten.add),
        ("aten::add", torch.ops.aten.add),
        ("linear", torch.ops.aten.linear),
        ("aten.nothing", None),
        ("aten.add.Nothing", None),
        ("nowhere.add", None),
        ("a.b.c.d", None),
        ("", None),
    ],
)
def test_operators_by_name(name, found) -> None:
    assert ops.operator_named(name) == found


# ------------------------------------------------------------------ command line


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, program: Any) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    torch.export.save(program, folder / "net.pt2")
    np.savez(folder / "images.npz", image=np.random.default_rng(0).normal(size=(12, 3, 8, 8)))
    data = np.load(folder / "images.npz")["image"].astype(np.float32)
    np.savez(folder / "images.npz", image=data)
    return folder


def run(capfd: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    capfd.readouterr()
    with pytest.raises(SystemExit) as caught:
        cli.main([str(arg) for arg in args])
    printed = capfd.readouterr()
    return int(caught.value.code or 0), printed.out, printed.err


def quantize(
    capfd: pytest.CaptureFixture[str], folder: Path, *args: object
) -> tuple[int, str, str]:
    data = folder / "images.npz"
    return run(capfd, "quantize", folder / "net.pt2", "--calibration", data, *args)


def test_init_prints_or_writes(capfd, tmp_path) -> None:
    assert run(capfd, "recipe", "init", "--backend", "x86") == (0, template("x86"), "")
    assert run(capfd, "recipe", "init", "-o", "-") == (0, template(), "")
    assert not Path("-").exists()
    path = tmp_path / "new" / "recipe.toml"
    assert run(capfd, "recipe", "init", "-o", path) == (0, f"written: {path}\n", "")
    assert path.read_text() == template()
    code, _, err = run(capfd, "recipe", "init", "-o", path)
    assert code == 1
    assert "is there already" in err


def test_quantize_with_a_recipe(capfd, folder, tmp_path) -> None:
    path = tmp_path / "recipe.toml"
    text = template().replace("modules = []", 'modules = ["blocks.*"]')
    path.write_text(text + "limit = 2\n")
    out = tmp_path / "net.pte"
    code, text, err = quantize(capfd, folder, "-o", out, "--recipe", path, "--report")
    assert (code, err) == (0, "")
    assert "2 batch(es), 1 more held out" in text
    assert text.count("float: module name 'blocks.*' is set to None") == 8
    assert re.search(r"quantized +│ 3 of \d+ operators", text)
    assert out.is_file()


@pytest.mark.parametrize(
    "backend, expected",
    [
        ("onnxruntime", r"integer kernels +│ .*1 QLinearConv"),
        ("tensorrt", r"compared in +│ ONNX Runtime"),
    ],
)
def test_onnx_backends(capfd, folder, tmp_path, backend, expected) -> None:
    pytest.importorskip("onnxruntime")
    from pt2q.deploy import onnx

    out = tmp_path / "net.onnx"
    code, text, err = quantize(capfd, folder, "-o", out, "--backend", backend)
    assert (code, err) == (0, "")
    assert re.search(expected, text)
    assert float(re.search(r"(\d+\.\d) dB", text)[1]) > 20  # type: ignore[index]
    x = torch.randn(2, 3, 8, 8)
    exact = read_program(folder / "net.pt2").module()(x)
    (found,) = onnx.load(out)(x)
    assert pt2q.sqnr(exact, found) > 15


@pytest.mark.slow
def test_x86(capfd, folder, tmp_path) -> None:
    out = tmp_path / "net.pt2"
    code, text, err = quantize(capfd, folder, "-o", out, "--backend", "x86")
    assert (code, err) == (0, "")
    assert re.search(r"int8 kernels +│ \d of \d convolutions and products", text)
    assert re.search(r"MB, with code; float tensors", text)
    assert float(re.search(r"(\d+\.\d) dB", text)[1]) > 20  # type: ignore[index]


def test_command_line_mistakes(capfd, folder, tmp_path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(template("x86"))
    cases = [
        (("-o", tmp_path / "a.pte", "--backend", "x86"), "x86 reads .pt2 files: write .*a.pt2"),
        (("-o", tmp_path / "a.pt2", "--recipe", tmp_path / "no.toml"), "cannot be read"),
        (
            ("-o", tmp_path / "a.pte", "--recipe", path, "--backend", "xnnpack"),
            r"is for x86, not for xnnpack: leave --backend out",
        ),
        (("-o", tmp_path / "a.onnx", "--backend", "tensorrt", "--dynamic"), "does not run mode"),
        (("-o", folder / "x" / ".." / "net.pt2", "--backend", "x86"), "read by this command"),
    ]
    for args, message in cases:
        code, text, err = quantize(capfd, folder, *args)
        assert (code, text) == (1, "")
        assert err.count("\n") == 1
        assert re.search(message, err), err


def test_the_report_comes_before_a_failure(capfd, tmp_path) -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv3d(1, 1, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x)

    x = torch.randn(2, 1, 4, 4, 4)
    torch.export.save(torch.export.export(Deep().eval(), (x,)), tmp_path / "deep.pt2")
    np.savez(tmp_path / "x.npz", x=np.zeros((6, 1, 4, 4, 4), np.float32))
    code, text, err = run(
        *(capfd, "quantize", tmp_path / "deep.pt2", "--calibration", tmp_path / "x.npz"),
        *("-o", tmp_path / "deep.pte", "--report"),
    )
    assert code == 1
    assert "aten.conv3d.default" in text
    assert "pt2q: " in err
