"""A template reproduces the default quantizer of its backend, and every key of it works."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.recipe_programs import quantized

import pt2q
from pt2q.app.recipe import Override, Settings, parse, template
from pt2q.deploy import BACKENDS
from pt2q.quantizers import (
    OnnxQDQQuantizer,
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
