"""What the call for all algorithms chooses, says and leaves behind."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from support import control_flow_models
from support.control_flow_models import MODELS
from support.few_bits import few_bits, weights_alone
from support.planted import TwoLinears, correlated
from support.results import assert_same, leaves
from support.small_quantizers import SmallQuantizer
from torch import nn

from pt2q import QuantGraphModule, Quantizer, quantize_pt2e, sqnr
from pt2q.algorithms import ALGORITHMS, GPTQ, Applied, SmoothQuant, report_of
from pt2q.app.recipe import parse
from pt2q.deploy import executorch, onnx
from pt2q.errors import SpecError
from pt2q.quantizers import (
    WeightQuantizer,
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
    get_weight_only_quantization_config,
)

BATCHES = 8


def bits(count: int) -> Quantizer:
    return WeightQuantizer(get_weight_only_quantization_config(count))


def per_tensor() -> Quantizer:
    return XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=False))


def improved(quantizer: Quantizer, **options: Any) -> QuantGraphModule:
    torch.manual_seed(0)
    network, batches = TwoLinears(32).eval(), correlated(BATCHES, rows=16, width=32, rank=4)
    return quantize_pt2e(torch.export.export(network, batches[0]), quantizer, batches, **options)


@pytest.mark.parametrize(
    ("quantizer", "effort", "names"),
    [
        (XNNPACKQuantizer, "fast", ["smooth_quant"]),
        (XNNPACKQuantizer, "balanced", ["smooth_quant", "scale_search", "bias_correction"]),
        (
            XNNPACKQuantizer,
            "best",
            ["smooth_quant", "scale_search", "gptq", "bias_correction"],
        ),
        (per_tensor, "fast", ["equalization", "smooth_quant"]),
        (lambda: bits(4), "fast", ["scale_search"]),
        (lambda: bits(4), "balanced", ["awq", "gptq"]),
        (lambda: weights_alone(few_bits(3)), "best", ["awq", "gptq", "adaround"]),
        (lambda: bits(8), "balanced", []),
    ],
)
def test_an_effort_chooses_by_what_is_asked_for(
    quantizer: Any, effort: str, names: list[str]
) -> None:
    found = improved(quantizer(), effort=effort).record.get(Applied)
    assert [name for name, _ in found.algorithms] == names if names else found is None


def test_what_cannot_be_asked_for() -> None:
    with pytest.raises(SpecError, match="expected one of fast, balanced, best, found 'most'"):
        improved(bits(4), effort="most")
    with pytest.raises(SpecError, match="give it, or gptq, not both"):
        improved(bits(4), effort="best", algorithms=[GPTQ()])


def test_what_was_done_is_carried_by_copies_and_pickles() -> None:
    converted = improved(bits(4), algorithms=[GPTQ(damping=0.02)], seed=7)
    again: QuantGraphModule = pickle.loads(pickle.dumps(converted))
    for model in (converted, again):
        found = model.record.get(Applied)
        assert found is not None and found.algorithms[0][1]["damping"] == 0.02
        assert (found.seed, set(found.versions)) == (7, {"pt2q", "torch"})
        assert [row.kept for row in report_of(model).rows] == [True, True]
    assert report_of(again) == report_of(converted)


def test_deployed_files_carry_it(tmp_path: Path) -> None:
    converted = improved(XNNPACKQuantizer(), effort="best")
    example = correlated(1, rows=16, width=32, rank=4)[0]
    wanted = json.loads(json.dumps(converted.record.get(Applied).to_dict()))
    assert wanted["changed"]["smooth_quant"] and wanted["algorithms"][0]["name"] == "smooth_quant"
    program = executorch.lower(converted, example).load()
    assert program.algorithms == wanted
    assert_same(program(*example)[0], converted(*example), 1e-1)
    onnx.export(converted, example, tmp_path / "model.onnx")
    import onnxruntime

    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    carried = session.get_modelmeta().custom_metadata_map
    assert json.loads(carried["pt2q.provenance"])["algorithms"] == wanted


def test_nothing_is_said_where_nothing_was_done() -> None:
    converted = improved(XNNPACKQuantizer())
    assert converted.record.get(Applied) is None and report_of(converted).rows == ()
    example = correlated(1, rows=16, width=32, rank=4)[0]
    program = executorch.lower(converted, example).load()
    assert program.algorithms is None and program.method_names == ("forward",)


def test_the_same_twice_bit_for_bit() -> None:
    """All algorithms, from memory and from files, whatever random numbers were drawn before."""
    chosen = [make(steps=20) if name == "adaround" else make() for name, make in ALGORITHMS.items()]
    found = []
    for spill in (False, True):
        torch.rand(3)
        found.append(improved(per_tensor(), algorithms=chosen, seed=3, spill=spill))
    one, other = found
    assert_same(one.state_dict(), other.state_dict())
    assert one.code == other.code
    texts = [model.record.get(Applied).to_dict() for model in found]
    assert texts[0] == texts[1]


def test_progress_is_told() -> None:
    told: list[tuple[int, int, str]] = []
    improved(bits(4), algorithms=[GPTQ()], progress=lambda *step: told.append(step))
    names = ["gptq: linear", "gptq: linear_1"] * 2  # with alignment, and without
    assert told == [(done, 4, name) for done, name in enumerate(names)]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_recipe_sets_every_setting(name: str) -> None:
    made = ALGORITHMS[name]()
    lines = [f"{key} = {_toml(value)}" for key, value in vars(made).items()]
    text = "\n".join(["[[algorithm]]", f'name = "{name}"', *lines])
    assert parse(text).algorithms == (made,)


def _toml(value: Any) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def test_a_recipe_of_algorithms() -> None:
    text = "seed = 5\n[[algorithm]]\nname = 'smooth_quant'\nstrengths = [0.5]\n"
    recipe = parse(text + "[[algorithm]]\nname = 'gptq'")
    assert recipe.algorithms == (SmoothQuant(strengths=(0.5,)), GPTQ()) and recipe.seed == 5
    assert parse("effort = 'best'").effort == "best"


def test_the_float_model_stays_as_it_is() -> None:
    network, batches = TwoLinears(32).eval(), correlated(BATCHES, rows=16, width=32, rank=4)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    program = torch.export.export(network, batches[0])
    code = program.graph_module.code
    quantize_pt2e(program, per_tensor(), batches, effort="best")
    assert_same(dict(network.state_dict()), state)
    assert program.graph_module.code == code and isinstance(network, nn.Module)


@pytest.mark.parametrize("kind", MODELS)
def test_bodies_of_control_flow(kind: type[nn.Module]) -> None:
    """Weights that bodies read are layers as others are; all algorithms leave a model that runs."""
    batches = [(x,) for x in control_flow_models.inputs()] * 2
    chosen = [make(steps=5) if name == "adaround" else make() for name, make in ALGORITHMS.items()]
    program = control_flow_models.exported(kind)
    converted = quantize_pt2e(program, SmallQuantizer(), batches, algorithms=chosen)
    rows = report_of(converted).rows
    assert any("." in row.layer for row in rows if row.algorithm == "gptq"), str(rows)
    exact, found = program.module()(*batches[0]), converted(*batches[0])
    for one, other in zip(leaves(exact), leaves(found), strict=True):
        assert float(sqnr(one, other)) > 15


def test_sizes_that_vary() -> None:
    network = TwoLinears(32).eval()
    sizes = torch.export.Dim("rows", min=2, max=64)
    batches = [(x[:rows],) for rows, (x,) in enumerate(correlated(8, rows=16, width=32, rank=4), 3)]
    program = torch.export.export(network, batches[0], dynamic_shapes=({0: sizes},))
    converted = quantize_pt2e(program, bits(4), batches, effort="best")
    assert any(row.kept for row in report_of(converted).rows)
    assert float(sqnr(network(*batches[5]), converted(*batches[5]))) > 18
