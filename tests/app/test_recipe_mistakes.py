"""Mistakes in a recipe are named with the way out."""

from __future__ import annotations

import pytest
import torch

from pt2q.app import recipe
from pt2q.app.recipe import Recipe, parse, template
from pt2q.deploy import BACKENDS
from pt2q.errors import DataError, RecipeError
from pt2q.ir import ops

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
    ("backend='tensorrt'\n[default]\nactivation_range = [0, 127]", "line 3.*both signs"),
    ("[default]\nweight_range = [-127, 0]", "line 2.*both signs"),
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
    ("[calibration]\nlimt = 3", "choose from limit; did you mean limit"),
    ("[defualt]\nmode = 'float'", "line 1, defualt: there is no such key.*did you mean default"),
    ("backend = 8", "line 1, backend: .*xnnpack.*; found 8"),
    ("[default]\nmode = 1", r"line 2, \[default\] mode: expected one of .*; found 1"),
    ("[[override]]\nmodule = 3", r"line 2, \[\[override\]\] 1 module: expected a name; found 3"),
    ("override = [3]", r"override.*: expected tables that begin with \[\[override\]\]; found 3"),
    ("effort = 'much'", 'line 1, effort: expected one of "fast", "balanced", "best"; found'),
    ("effort = 'best'\n[[algorithm]]\nname = 'awq'", "line 1, effort: it chooses the algorithms"),
    ("seed = -1", "line 1, seed: expected a whole number from 0 up; found -1"),
    ("[[algorithm]]\nname = 'gptqq'", r'line 2, \[\[algorithm\]\] 1 name: .*"gptq".*; found'),
    ("[[algorithm]]\ndamping = 1.0", r"\[\[algorithm\]\] 1 name: expected a name.*; found none"),
    ("[[algorithm]]\nname = 'gptq'\ndamp = 1", "line 3.*no such key; .*did you mean damping"),
    (
        "[[algorithm]]\nname = 'awq'\n[[algorithm]]\nname = 'gptq'\nblock = 1.5",
        r"line 5, \[\[algorithm\]\] 2 block: expected a whole number; found 1.5",
    ),
    ("[[algorithm]]\nname = 'awq'\nstrengths = 1", "line 3.*expected a list of numbers; found 1"),
    ("mode = ", "no valid TOML: Invalid value"),
    ("[default]\nmode = 'weights'", 'line 2.*"static", "dynamic", "float"; found'),
    ("backend = 'x86'\nresidual_projections = 'static'", "line 2.*x86 does not take this key; ch"),
    ("residual_projections = 'x'", 'line 1, residual_projections: .*"dynamic", "static"'),
    ("backend = 'tensorrt'\nembeddings = true", "line 2, embeddings: tensorrt does not take"),
    ("backend = 'x86'\nembeddings = true", "line 2, embeddings: x86 does not take"),
    ("embeddings = 'int8'", "line 1, embeddings: expected true or false; found 'int8'"),
    ("backend = 'x86'\n[default]\ngroup_size = 32", "line 3.*x86 does not take this key.*mode"),
    ("[default]\ngroup_size = 16", "line 2.*expected a multiple of 32; found 16"),
    ("[default]\ngroup_size = 32", r"line 1, \[default\] mode: XNNPACK takes weight in .*group"),
    (
        "backend = 'onnxruntime'\n[default]\ngroup_size = 0",
        "line 3.*expected a whole number from 1 up; found 0",
    ),
    ("[default]\nmin_scale = 1e-30", "line 2.*expected a number from 8.67e-19.*; found 1e-30"),
    ("[default]\nmin_scale = 'tiny'", "line 2.*expected a number, such as 1e-9; found 'tiny'"),
    ("[decompositions]\nmax_steps = 0", r"line 2, \[decompositions\] max_steps: .* from 1 up"),
    ("[decompositions]\nlstm = true", "no such key; choose from attention, recurrent, max_steps"),
    ("backend = 'x86'\n[default]\nmode = 'weights'", 'set weight_dtype = "float16"'),
    (
        "backend = 'x86'\n[default]\nmode = 'weights'\nweight_dtype = 'float16'\n"
        "weight_range = [-8, 7]",
        "line 3.*no scales: leave out weight_range",
    ),
    (
        "[[override]]\nmodule = 'a'\nmode = 'dynamic'\ngroup_size = 32",
        r"line 1, \[\[override\]\] 1: XNNPACK takes weight in",
    ),
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
    with pytest.raises(RecipeError, match=r"mode 'dynamic'.*static, weights, float"):
        Recipe("openvino").changed(mode="dynamic").quantizer()


def test_scales_the_backend_lacks() -> None:
    with pytest.raises(RecipeError, match="x86 does not run weights with a scale per tensor"):
        Recipe("x86").changed(weight_scales="tensor").quantizer()


def test_unknown_backends() -> None:
    with pytest.raises(DataError, match="unknown backend 'tpu': choose from xnnpack, x86"):
        BACKENDS["tpu"]
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
