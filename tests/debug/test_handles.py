"""Numeric debug handles, and the standard calls that pair values by them."""

from __future__ import annotations

import copy

import pytest
import torch
from support.comparing import ConvBn, Mlp, build, convert, run
from support.control_flow_models import Nested, exported
from support.control_flow_models import inputs as flow_inputs
from torch import nn

from pt2q import convert_pt2e, prepare_pt2e, sqnr
from pt2q.debug import (
    ComparisonError,
    Origin,
    compare,
    compare_results,
    extract_results_from_loggers,
    generate_numeric_debug_handle,
    prepare_for_propagation_comparison,
)
from pt2q.errors import NotExportedError
from pt2q.ir.graph import dump, handle_of
from pt2q.quantizers import XNNPACKQuantizer


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_handles_survive_the_flow() -> None:
    _, program, inputs = build(ConvBn, 4, 3, 8, 8)
    generate_numeric_debug_handle(program)
    handles = {n.name: handle_of(n) for n in program.graph.nodes if n.op == "call_function"}
    assert sorted(handles.values()) == list(range(1, len(handles) + 1))
    generate_numeric_debug_handle(program)
    assert {n.name: handle_of(n) for n in program.graph.nodes if n.op == "call_function"} == handles
    assert all(handle_of(n) is None for n in program.graph.nodes if n.op != "call_function")

    converted = convert(program, inputs)
    anew = torch.export.export(converted, (inputs[0],)).run_decompositions()
    names = {n.name: n for n in converted.graph.nodes}
    assert handle_of(names["conv2d"]) == handles["batch_norm"]
    assert handle_of(names["linear_1"]) == handles["linear_1"]
    for model in (converted, anew, convert(program, inputs, use_reference_representation=True)):
        report = compare(program, model, inputs)
        assert {"relu", "mean", "linear", "linear_1", "linear_2"} <= {r.node for r in report}
        assert report["linear_2"].total.sqnr == pytest.approx(
            compare(program, converted, inputs)["linear_2"].total.sqnr, abs=1
        )


def test_handles_in_bodies() -> None:
    program = copy.deepcopy(exported(Nested))
    generate_numeric_debug_handle(program)
    prepared = prepare_pt2e(program, XNNPACKQuantizer())
    for x in flow_inputs():
        prepared(x)
    converted = convert_pt2e(prepared)
    report = compare(program, converted, flow_inputs())
    plain = compare(exported(Nested), converted, flow_inputs())
    assert [r.node for r in report] == [r.node for r in plain] and report.unmatched == ()
    with pytest.raises(NotExportedError):
        generate_numeric_debug_handle(nn.Linear(2, 2))


@pytest.mark.parametrize("with_handles", [True, False])
@pytest.mark.parametrize("kind", [Mlp, Nested])
def test_the_standard_calls(kind: type[nn.Module], with_handles: bool) -> None:
    if kind is Mlp:
        _, program, inputs = build(Mlp, 8, 16)
    else:
        program, inputs = copy.deepcopy(exported(Nested)), flow_inputs()
    if with_handles:
        generate_numeric_debug_handle(program)
    converted = convert(program, inputs)
    before = dump(converted)
    reference = prepare_for_propagation_comparison(program.module())
    actual = prepare_for_propagation_comparison(converted)
    for x in inputs:
        torch.testing.assert_close(actual(x), converted(x))
        reference(x)
    found = compare_results(
        extract_results_from_loggers(reference), extract_results_from_loggers(actual)
    )
    assert dump(converted) == before
    assert all(isinstance(key, int if with_handles else Origin) for key in found)
    report = compare(program, converted, inputs)
    names = {s.ref_node_name: s for s in found.values()}
    assert {row.node for row in report if row.operator.startswith("aten")} <= names.keys()
    node = "linear_1" if kind is Mlp else "while_loop_body_graph_0.true_graph_0.linear"
    summary = names[node]
    assert len(summary.results) == report[node].calls
    first = summary.results[0]
    assert float(first.sqnr) == pytest.approx(float(sqnr(first.ref, first.actual)))
    mse = float((first.ref.double() - first.actual.double()).square().mean())
    assert float(first.mse_loss) == pytest.approx(mse)
    if kind is Mlp:
        assert "layers.1" in summary.ref_module_stack and "Linear" in summary.actual_module_stack
        raw = torch.cat([r.actual for r in summary.results])
        expected = torch.cat([run(converted, x).values["linear_1"] for x in inputs])
        torch.testing.assert_close(raw, expected)


def test_results_that_do_not_fit_are_named() -> None:
    _, program, inputs = build(Mlp, 8, 16)
    reference = prepare_for_propagation_comparison(program.module())
    actual = prepare_for_propagation_comparison(convert(program, inputs))
    reference(inputs[0])
    actual(inputs[0])
    actual(inputs[0])
    one, other = extract_results_from_loggers(reference), extract_results_from_loggers(actual)
    with pytest.raises(ComparisonError, match="linear ran 1 times in the float model"):
        compare_results(one, other)
    with pytest.raises(ComparisonError, match="nothing in common"):
        compare_results({Origin("a"): ("a", None, [])}, {Origin("b"): ("b", None, [])})


def test_beside_the_peer() -> None:
    """The raw values of operators that both find have the same errors."""
    peer = pytest.importorskip("torchao.quantization.pt2e")
    _, program, inputs = build(Mlp, 8, 16, batches=1)
    converted = convert(program, inputs)
    models = [program.module(check_guards=False), converted]
    theirs = [peer.prepare_for_propagation_comparison(m) for m in models]
    ours = [prepare_for_propagation_comparison(m) for m in models]
    for model in (*theirs, *ours):
        model(inputs[0])
    expected = peer.compare_results(*map(peer.extract_results_from_loggers, theirs))
    found = compare_results(*map(extract_results_from_loggers, ours))
    names = {s.ref_node_name: s for s in found.values()}
    seen = 0
    for summary in expected.values():
        if summary.ref_node_name not in names or len(summary.results) != 1:
            continue
        mine = names[summary.ref_node_name]
        if mine.actual_node_name == summary.actual_node_name:
            seen += 1
            pair = summary.results[0]
            assert torch.equal(pair.actual, mine.results[0].actual)
            assert torch.equal(pair.ref, mine.results[0].ref)
            # Theirs takes the quantized value for the signal.
            assert float(mine.results[0].sqnr) == pytest.approx(float(pair.sqnr), abs=0.05)
    assert seen >= 2
