"""Sound models keep all laws."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from support.nets import NETS
from support.random_images import Network, recipes
from support.small_quantizers import DYNAMIC, NoopQuantizer, SmallQuantizer
from support.verifying import X, converted, prepared

from pt2q import convert_pt2e, prepare_pt2e, verify
from pt2q.ir.verify import LAWS
from pt2q.quantizers import XNNPACKQuantizer, get_symmetric_quantization_config


@pytest.mark.parametrize("quantizer", [SmallQuantizer(), SmallQuantizer(DYNAMIC), NoopQuantizer()])
def test_sound_models_keep_all_laws(quantizer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ready = prepared(quantizer)
    assert verify(ready, X).ok, str(verify(ready, X))
    done = convert_pt2e(ready)
    report = verify(done, X)
    assert report.ok and report.laws == tuple(LAWS), str(report)
    report.raise_if_broken()
    assert "all laws hold" in str(report)


@pytest.mark.parametrize("name", ["small_mobilenet", "small_vit", "small_bert"])
def test_networks_keep_all_laws(name):
    quantizer = XNNPACKQuantizer()
    quantizer.set_global(get_symmetric_quantization_config(is_per_channel=True))
    inputs = NETS[name].inputs(2)
    ready = prepare_pt2e(torch.export.export(NETS[name].build(), inputs), quantizer)
    ready(*inputs)
    for model in (ready, convert_pt2e(ready)):
        verify(model, inputs).raise_if_broken()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        verify(convert_pt2e(ready, True), inputs).raise_if_broken()


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(recipes())
def test_random_networks_keep_the_laws(recipe):
    inputs = recipe.inputs()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(Network(recipe).eval(), inputs)
        ready = prepare_pt2e(exported, SmallQuantizer())
        ready(*inputs)
        for model in (ready, convert_pt2e(ready), convert_pt2e(ready, True)):
            verify(model).raise_if_broken()


def test_verify_changes_nothing():
    model = converted()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    text = str(model.graph)
    verify(model, X)
    assert str(model.graph) == text
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
