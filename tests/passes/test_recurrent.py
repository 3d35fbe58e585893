"""Recurrent layers unrolled compute what the layer does."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from support.laws import assert_laws, assert_values_match
from support.nodes import nodes_of
from support.results import assert_same, leaves
from support.taking_apart import taken_apart
from torch import Tensor, nn

from pt2q import convert_pt2e, prepare_pt2e, sqnr
from pt2q.ir import ops
from pt2q.ir.module import import_exported
from pt2q.passes import run_passes, verified_passes
from pt2q.passes.transform.recurrent import DecomposeRecurrent
from pt2q.quantizers import XNNPACKQuantizer, get_symmetric_quantization_config

AUTO = torch.export.Dim.AUTO


# torch says so of every recurrent layer it exports.
pytestmark = pytest.mark.filterwarnings("ignore:The tensor attributes self")


class Recurrent(nn.Module):
    """A recurrent layer whose state is given, or starts from zero."""

    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.layer = kind(4, 6, **options)

    def forward(self, x: Tensor, *state: Tensor) -> Any:
        if not state:
            return self.layer(x)
        return self.layer(x, state[0] if len(state) == 1 else state)


KINDS: dict[str, tuple[type[nn.RNNBase], dict[str, Any]]] = {
    "lstm": (nn.LSTM, {}),
    "lstm, all": (
        nn.LSTM,
        {"num_layers": 2, "bidirectional": True, "batch_first": True, "dropout": 0.25},
    ),
    "lstm, no bias": (nn.LSTM, {"bias": False, "num_layers": 2}),
    "lstm, projected": (nn.LSTM, {"proj_size": 3, "bidirectional": True, "num_layers": 2}),
    "lstm, projected, no bias": (nn.LSTM, {"proj_size": 3, "bias": False}),
    "gru": (nn.GRU, {"batch_first": True}),
    "gru, all": (nn.GRU, {"num_layers": 3, "bidirectional": True, "dropout": 0.25}),
    "gru, no bias": (nn.GRU, {"bias": False}),
    "tanh": (nn.RNN, {"num_layers": 2}),
    "relu": (nn.RNN, {"nonlinearity": "relu", "bidirectional": True}),
}


@functools.cache
def recurrent(name: str) -> tuple[nn.Module, torch.export.ExportedProgram, Tensor]:
    torch.manual_seed(0)
    kind, options = KINDS[name]
    model, x = Recurrent(kind, **options).eval(), torch.randn(3, 5, 4)
    return model, torch.export.export(model, (x,)), x


@pytest.mark.parametrize("name", KINDS)
def test_steps_compute_what_the_layer_does(name: str) -> None:
    model, program, x = recurrent(name)
    module = import_exported(program)
    with verified_passes():
        run_passes(module, [DecomposeRecurrent()])
    assert not nodes_of(module, ops.RECURRENT) and nodes_of(module, ops.LINEAR)
    assert_same(module(x), model(x), 1e-5)
    assert_values_match(module, (x,))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_given_state_and_unbatched_input(kind: type[nn.RNNBase]) -> None:
    model = Recurrent(kind, num_layers=2).eval()
    state = [torch.randn(2, 3, 6) for _ in range(2 if kind is nn.LSTM else 1)]
    for x, given in [
        (torch.randn(5, 3, 4), state),
        (torch.randn(5, 4), [s[:, 0] for s in state]),
    ]:
        module = taken_apart(model, DecomposeRecurrent(), x, *given)
        assert_same(module(x, *given), model(x, *given), 1e-5)


def test_a_symbolic_batch_is_unrolled() -> None:
    model, x = Recurrent(nn.LSTM, batch_first=True).eval(), torch.randn(3, 5, 4)
    shapes = {"x": {0: AUTO}}
    module = taken_apart(model, DecomposeRecurrent(), x, dynamic_shapes=shapes)
    assert not nodes_of(module, ops.RECURRENT)
    for batch in (2, 7):
        other = torch.randn(batch, 5, 4)
        assert_same(module(other), model(other), 1e-5)


def test_dropout_between_layers_switches() -> None:
    model, x = Recurrent(nn.GRU, num_layers=2, dropout=0.25).train(), torch.randn(3, 5, 4)
    module = taken_apart(model, DecomposeRecurrent(), x)
    (dropout,) = nodes_of(module, ops.DROPOUT)
    assert dropout.args[1:] == (0.25, True)
    module.eval()
    assert_same(module(x), model.eval()(x), 1e-5)
    module.train()
    assert not torch.equal(module(x)[0], module(x)[0])


def test_gradients_of_a_recurrent_layer() -> None:
    model, program, x = recurrent("lstm, all")
    module = import_exported(program)
    run_passes(module, [DecomposeRecurrent()])
    weights = list(model.parameters())
    wanted = torch.autograd.grad(model(x)[0].square().sum(), weights)
    own = dict(module.named_parameters())
    found = torch.autograd.grad(
        module(x)[0].square().sum(), [own[n] for n, _ in model.named_parameters()]
    )
    assert_same(found, wanted, 1e-4)


def dynamic() -> XNNPACKQuantizer:
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
    return XNNPACKQuantizer().set_global(config)


@pytest.mark.parametrize("make", [XNNPACKQuantizer, dynamic])
@pytest.mark.parametrize("name", ["lstm, all", "gru, all"])
def test_products_of_recurrent_layers_are_quantized(name: str, make: Any) -> None:
    model, program, x = recurrent(name)
    quantizer = make()
    with verified_passes(), torch.no_grad():
        ready = prepare_pt2e(program, quantizer)
        for seed in range(4):
            ready(torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(seed)))
        done = convert_pt2e(ready)
        assert_laws(done, converted=True)
        for wanted, found in zip(leaves(model(x)), leaves(done(x)), strict=True):
            assert sqnr(wanted, found) > 30
    # One weight for all steps, stored once; the states that a layer starts from are stored too.
    stored = [n for n, b in done.named_buffers() if b.dtype == torch.int8 and "weight" in n]
    assert len(stored) == sum(n.count("weight") for n, _ in model.named_parameters())
    # Measured at run time, what a first step makes of a state of zeros would be a range of nothing.
    floats = [
        r
        for r in quantizer.report().rows
        if r.operator == "aten.linear.default" and not r.quantized
    ]
    first_steps = 0 if make is XNNPACKQuantizer else 2 * KINDS[name][1]["num_layers"]
    assert [row.reason.code for row in floats] == ["nothing-to-measure"] * first_steps


@pytest.mark.parametrize(
    ("reason", "kind", "options"),
    [
        ("its sequence length is symbolic", nn.LSTM, {"dynamic_shapes": {"x": {0: AUTO}}}),
        ("its 5 steps are more than max_steps=4", nn.GRU, {}),
    ],
)
def test_what_is_not_unrolled_is_named(reason: str, kind: Any, options: Any) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = kind(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(x)[0])

    model, x = Model().eval(), torch.randn(5, 3, 4)
    quantizer = XNNPACKQuantizer().set_decompositions(max_steps=4)
    ready = prepare_pt2e(torch.export.export(model, (x,), **options), quantizer)
    ready(x)
    done = convert_pt2e(ready)
    assert len(nodes_of(done, ops.RECURRENT)) == 1
    (row,) = (
        r for r in quantizer.report() if "aten.gru" in r.operator or "aten.lstm" in r.operator
    )
    assert not row.quantized and f"not taken apart: {reason}" in row.how
    assert any(reason in str(note) for note in done.record.notes)
    assert sqnr(model(x), done(x)) > 30
