"""Twenty planted faults: the doctor names the right tensor, and what it does wins the loss back."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
import torch
from support.planted_faults import FAULTS, Mlp, Planted, case, everywhere, rows
from torch import nn

from pt2q import prepare_pt2e, prepare_qat_pt2e, sqnr
from pt2q.algorithms.engine import Lane, Walk
from pt2q.algorithms.engine.walk import ROUNDED
from pt2q.debug import Change, Diagnosis, QuantizerSetup, doctor
from pt2q.debug.diagnosis.causes import OTHERWISE, proposals
from pt2q.debug.diagnosis.trials import Trials
from pt2q.debug.sensitivities.judging import SqnrJudge
from pt2q.debug.sensitivities.sensitivity import float_results
from pt2q.errors import BatchNormNotFoldedWarning, DataError, NothingQuantizedWarning
from pt2q.quantizers import OnnxQDQQuantizer, XNNPACKQuantizer

QUICK = ("activation_channel", "few_bits_of_a_weight", "narrow_calibration")
"""One of each kind of fix; the others take a second or two each."""


def setup_of(planted: Planted) -> QuantizerSetup:
    program = torch.export.export(planted.model.eval(), planted.calibration[0])
    prepare = prepare_qat_pt2e if planted.qat else prepare_pt2e
    data = planted.calibration, planted.held_out[::2]
    return QuantizerSetup(program, planted.quantizer, *data, prepare)


def quality(planted: Planted, changes: Sequence[Change] = ()) -> float:
    """Measured apart from the doctor, on what it has not calibrated on either."""
    model, _ = setup_of(planted).prepared(changes)
    judged = planted.held_out[1::2]
    with Walk(model, judged, [Lane.floating(), Lane.rounding()]) as walk:
        found = walk.finish()
    with torch.no_grad():
        exact = torch.cat([planted.model(*batch).flatten() for batch in judged])
    return float(sqnr(exact, torch.cat([r.flatten() for r in found[ROUNDED]])))


def examine(name: str) -> tuple[Planted, Diagnosis, float]:
    torch.manual_seed(0)
    planted = FAULTS[name](True)
    found = doctor(setup_of(planted), planted.held_out, calibration=planted.calibration)
    torch.manual_seed(0)
    return planted, found, quality(FAULTS[name](False))


def names_it(planted: Planted, found: Diagnosis) -> bool:
    return any(planted.right & {*f.nodes, *f.modules} for f in found.findings[:3])


@pytest.mark.parametrize("name", QUICK)
def test_a_fault_is_named_and_mended(name: str) -> None:
    planted, found, healthy = examine(name)
    assert healthy - found.before > 8
    assert names_it(planted, found), str(found)
    assert found.after - found.before >= 0.8 * (healthy - found.before), str(found)
    assert quality(planted) == pytest.approx(found.before, abs=0.01)
    assert quality(planted, found.changes) == pytest.approx(found.after, abs=0.01)


@pytest.mark.slow
def test_twenty_faults() -> None:
    assert len(FAULTS) == 20
    named, mended = set(), set()
    for name in FAULTS:
        planted, found, healthy = examine(name)
        assert healthy - found.before > 8, name
        if names_it(planted, found):
            named.add(name)
        if found.after - found.before >= 0.8 * (healthy - found.before):
            mended.add(name)
    assert len(named) >= 18, set(FAULTS) - named
    assert len(mended) >= 16, set(FAULTS) - mended


@pytest.fixture(scope="module")
def healthy() -> Planted:
    torch.manual_seed(0)
    return case(Mlp(), set(), calibration=rows(8), held_out=rows(4, seed=2))


def test_a_healthy_model_is_left_alone(healthy: Planted) -> None:
    setup = setup_of(healthy)
    found = doctor(setup, healthy.held_out, calibration=healthy.calibration)
    assert found.before > 30
    causes = {finding.cause for finding in found}
    assert not causes & {"clipped", "few bits", "scale at its floor", "outlier in a weight"}
    assert not any("calibration" in cause for cause in causes)


def test_as_text_and_json() -> None:
    _, found, _ = examine("few_bits_of_a_weight")
    assert max(map(len, found.text(80).splitlines())) <= 80
    first = json.loads(found.to_json())["findings"][0]
    assert list(first) == ["cause", "nodes", "modules", "evidence", "gain_db", "fix"]
    assert first["cause"] == "few bits" and first["gain_db"] > 5
    assert "1. few bits: two_weight (in two)" in str(found)
    assert len(list(found)) == len(found)


def test_nothing_quantized_and_no_data(healthy: Planted) -> None:
    nothing = everywhere()
    program = torch.export.export(healthy.model.eval(), healthy.calibration[0])
    setup = QuantizerSetup(
        program, lambda: nothing().set_global(None), healthy.calibration, healthy.held_out
    )
    with pytest.warns(NothingQuantizedWarning):
        (finding,) = doctor(setup, healthy.held_out).findings
    assert finding.cause == "nothing quantized" and "global configuration" in finding.evidence
    with pytest.raises(DataError, match="not calibrated on"):
        doctor(setup, [])


def test_batch_norms_and_operators_in_float_are_told() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(16), nn.Linear(16, 16), nn.Sigmoid(), nn.Linear(16, 4))
    planted = case(model, set(), calibration=rows(4), held_out=rows(2, seed=2))
    with pytest.warns(BatchNormNotFoldedWarning):
        found = doctor(setup_of(planted), planted.held_out)
    by_cause = {finding.cause: finding for finding in found}
    assert by_cause["batch norm not folded"].nodes == ("batch_norm",)
    assert any("sigmoid" in f.nodes for f in found if f.cause == "left in float")


def test_a_node_may_be_told_apart_from_its_kind() -> None:
    program = torch.export.export(Mlp().eval(), rows(1)[0])
    quantizer = XNNPACKQuantizer().set_node_name("linear_1", None)
    prepare_pt2e(program, quantizer)
    report = quantizer.report()
    assert not report["linear_1"].quantized and report["linear"].quantized
    assert str(report["linear_1"].reason) == "node 'linear_1' is set to None"


def test_sixteen_bits_are_tried_where_the_backend_has_them(healthy: Planted) -> None:
    told: list[str] = []
    for quantizer, has in ((OnnxQDQQuantizer, True), (XNNPACKQuantizer, False)):
        program = torch.export.export(healthy.model.eval(), healthy.calibration[0])
        setup = QuantizerSetup(program, quantizer, healthy.calibration)
        judge = SqnrJudge(float_results(setup.prepared()[0], healthy.held_out))
        trials = Trials(setup, healthy.held_out, judge, 3, lambda *at: told.append(at[2]))
        assert trials.start(setup.prepared()[0]) > 3
        change = proposals(OTHERWISE, ("linear",), "activation")[-2]
        assert str(change) == "int16 for linear"
        assert (trials.gain(change) > 0) == has
        assert trials.made == 1 and told.pop() == str(change)
        trials.gain(proposals(OTHERWISE, ("linear_1",), "activation")[-2])
        assert trials.made == 1 + has  # what the backend has refused is not asked again
    assert "int16" not in map(str, proposals(OTHERWISE, ("linear",), "weight"))


def test_no_more_is_tried_than_may_be() -> None:
    torch.manual_seed(0)
    planted = FAULTS["few_bits_of_a_weight"](True)
    told: list[tuple[int, int]] = []
    found = doctor(
        setup_of(planted), planted.held_out, trials=1, progress=lambda *at: told.append(at[:2])
    )
    assert (0, 1) in told and (1, 1) not in told
    assert sum(finding.fix is not None for finding in found) <= 1
    assert found.changes in ((), (found.findings[0].fix,))
