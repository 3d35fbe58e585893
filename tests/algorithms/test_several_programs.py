"""Prefill and decode are calibrated and improved together, by one call."""

from __future__ import annotations

import copy
import functools
import itertools
import threading
from typing import Any

import pytest
import torch
from support.nodes import nodes_of
from support.seeds import seeded
from support.thread_ranks import in_threads
from support.two_programs import examples, generate, sentence, small_decoder, two_programs
from torch import Tensor, nn

from pt2q import QuantGraphModule, convert_pt2e, prepare_pt2e, quantize_pt2e, sqnr
from pt2q.algorithms import (
    AWQ,
    GPTQ,
    AdaRound,
    BiasCorrection,
    CrossLayerEqualization,
    SmoothQuant,
    report_of,
)
from pt2q.distributed import Ranks, calibrate
from pt2q.errors import DataError
from pt2q.flow import provenance_of
from pt2q.ir import ops
from pt2q.ir.graph import get_constant, named_tensors
from pt2q.ir.joined import join_programs
from pt2q.quantizers import (
    StateQuantizer,
    WeightQuantizer,
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
    get_weight_only_quantization_config,
)

PROMPT = 8
Programs = dict[str, QuantGraphModule]


def batch(seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    words = sentence(seed, PROMPT + 1)
    at = torch.arange(PROMPT + 1)
    return {
        "prefill": (words[:, :PROMPT], at[:PROMPT]),
        "decode": (words[:, PROMPT:], at[PROMPT:]),
    }


BATCHES = [batch(seed) for seed in range(8)]


@functools.cache
def floating() -> dict[str, torch.export.ExportedProgram]:
    return two_programs(small_decoder(), PROMPT)


def static() -> StateQuantizer:
    return StateQuantizer(XNNPACKQuantizer())


def four_bits() -> WeightQuantizer:
    return WeightQuantizer(get_weight_only_quantization_config(4, 32))


def by_hand() -> Programs:
    prepared = prepare_pt2e(floating(), static())
    with torch.no_grad():
        for calls in BATCHES:
            for name, model in prepared.items():
                model(*calls[name])
    return prepared


def states(programs: Programs) -> dict[str, Tensor]:
    return {f"{n}.{k}": v for n, m in programs.items() for k, v in m.state_dict().items()}


def same(one: Programs, other: Programs) -> bool:
    first, second = states(one), states(other)
    return first.keys() == second.keys() and all(
        torch.equal(value, second[name]) for name, value in first.items()
    )


def test_one_call_does_what_a_loop_does() -> None:
    made = quantize_pt2e(floating(), static(), BATCHES)
    expected = convert_pt2e(by_hand())
    assert list(made) == ["prefill", "decode"]
    assert same(made, expected)
    found, wanted = (generate(copy.deepcopy(p), 9, 8, PROMPT) for p in (made, expected))
    assert torch.equal(found, wanted)
    assert all(provenance_of(model).data.batches == len(BATCHES) for model in made.values())
    prepared = prepare_pt2e(floating(), static())
    calibrate(prepared, iter(BATCHES))
    assert same(convert_pt2e(prepared), expected)


def test_what_is_joined_computes_what_each_computes_side_by_side() -> None:
    """Layer by layer, but for what is between the writes and the reads of a cache."""
    prepared = prepare_pt2e(floating(), static())
    joined = join_programs(prepared)
    order = [joined.nodes[n.name][0] for n in joined.module.graph.nodes if n.name in joined.nodes]
    changes = sum(one != other for one, other in itertools.pairwise(order))
    assert changes > 8
    alone = copy.deepcopy(prepared)
    with torch.no_grad():
        for calls in BATCHES[:2]:
            together = joined.module(*joined.call(calls))
            expected = [model(*calls[name]) for name, model in alone.items()]
            assert all(torch.equal(a, b) for a, b in zip(together, expected, strict=True))


def test_they_come_apart_as_they_were() -> None:
    prepared = by_hand()
    joined = join_programs(prepared)
    again = joined.apart(copy.deepcopy(joined.module))
    for name, model in again.items():
        source = prepared[name].graph.nodes
        assert [n.name for n in model.graph.nodes if n.op != "placeholder"] == [
            n.name for n in source if n.op != "placeholder"
        ]
    done, expected = convert_pt2e(again), convert_pt2e(prepared)
    assert same(done, expected)
    words = {"tokens": 1}
    with pytest.raises(DataError, match="prefill"):
        joined.call(words)
    with pytest.raises(DataError, match=r"a call of each of \['prefill', 'decode'\].*found Tensor"):
        joined.call(torch.ones(1))
    for name, model in done.items():  # keywords are what they were
        token, at = BATCHES[0][name]
        assert torch.equal(model(token, at), expected[name](token, at))


class Steps(nn.Module):
    """Nothing is remembered: calls can be shared out."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x)))


Calls = dict[str, tuple[Tensor]]


@functools.cache
def steps() -> tuple[dict[str, torch.export.ExportedProgram], list[Calls], list[Calls]]:
    """Programs of many rows and of one, data of channels that go together, and more of it."""
    with seeded(0):
        model = Steps().eval()
        mixing = torch.randn(4, 16)
        data = [
            {"many": (torch.randn(32, 4) @ mixing,), "one": (torch.randn(1, 4) @ mixing,)}
            for _ in range(24)
        ]
    programs = {name: torch.export.export(model, call) for name, call in data[0].items()}
    return programs, data[:12], data[12:]


def noise(programs: Programs, name: str) -> float:
    floating, _, unseen = steps()
    exact = floating[name].module()
    pairs = [(exact(*calls[name]), programs[name](*calls[name])) for calls in unseen]
    return float(sqnr(*map(torch.cat, zip(*pairs, strict=True))))


def test_gptq_is_applied_once_to_what_is_shared() -> None:
    programs, data, _ = steps()
    quantizer = WeightQuantizer(get_weight_only_quantization_config(4, 16))
    plain = quantize_pt2e(programs, quantizer, data)
    made = quantize_pt2e(programs, quantizer, data, algorithms=[GPTQ()])
    for model in made.values():
        assert [(row.module, row.kept) for row in report_of(model).rows] == [
            ("up", True),
            ("down", True),
        ]
    one, other = (named_tensors(model) for model in made.values())
    assert {"up.weight_quantized", "down.weight_quantized"} <= one.keys()
    assert all(one[name].data_ptr() == other[name].data_ptr() for name in one)
    for name in made:
        assert noise(made, name) > noise(plain, name) + 1


@pytest.mark.parametrize("algorithm", [AdaRound(steps=20), BiasCorrection()], ids=lambda a: a.name)
def test_other_algorithms_change_programs_alike(algorithm: Any) -> None:
    joined = join_programs(prepare_pt2e(floating(), four_bits()))
    assert any(row.kept for row in algorithm(joined.module, list(joined.calls(BATCHES))).rows)
    made = convert_pt2e(joined.apart(joined.module))
    for name, model in made.items():
        program = torch.export.export(model, examples(PROMPT)[name])
        assert torch.equal(program.module()(*BATCHES[0][name]), model(*BATCHES[0][name]))
    added = [
        [get_constant(model, node) for node in n.all_input_nodes if node.op == "get_attr"]
        for model in made.values()
        for n in nodes_of(model, ops.LINEAR)
    ]
    assert len(added) == 16


def test_processes_share_the_calls_out() -> None:
    programs, data, _ = steps()
    copies = [prepare_pt2e(programs, XNNPACKQuantizer()) for _ in range(3)]
    own = threading.local()

    def work(ranks: Ranks) -> None:
        own.ranks = ranks
        calibrate(copies[ranks.rank + ranks.size - 1], data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ranks, "of", staticmethod(lambda group=None: own.ranks))
        in_threads(1, work)
        in_threads(2, work)
    expected, *others = map(convert_pt2e, copies)
    assert all(same(found, expected) for found in others)


class Uneven(nn.Module):
    """A norm with a channel far larger than the others, and a layer with a large one."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 8)
        with torch.no_grad():
            self.norm.weight[3] *= 60
            self.up.weight[:, 3] /= 60
            self.up.weight[5] *= 60
            self.down.weight[:, 5] /= 60

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(self.norm(x))))


def per_tensor() -> XNNPACKQuantizer:
    return XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=False))


@pytest.mark.parametrize(
    "algorithm, tensors",
    [
        (SmoothQuant(), ("norm.weight", "up.bias")),
        (AWQ(), ("norm.weight", "up.bias")),
        (CrossLayerEqualization(), ("up.bias",)),
    ],
    ids=lambda a: getattr(a, "name", ""),
)
def test_factors_move_alike_in_all_programs(algorithm: Any, tensors: tuple[str, ...]) -> None:
    """Out of what all read, into what all read, from the data of all."""
    _, data, unseen = steps()
    with seeded(0):
        model = Uneven().eval()
    programs = {name: torch.export.export(model, call) for name, call in data[0].items()}
    plain = quantize_pt2e(programs, per_tensor(), data)
    made = quantize_pt2e(programs, per_tensor(), data, algorithms=[algorithm])
    assert any(row.kept and "," not in row.layer for row in report_of(made["one"]).rows)
    one, other = (named_tensors(program) for program in made.values())
    for name in tensors:
        assert one[name].data_ptr() == other[name].data_ptr()
        assert not torch.equal(one[name], model.state_dict()[name])
        assert torch.equal(model.state_dict()[name], programs["one"].state_dict[name])
    for name in programs:
        exact = torch.cat([model(*calls[name]) for calls in unseen])
        before, after = (
            float(sqnr(exact, torch.cat([found[name](*calls[name]) for calls in unseen])))
            for found in (plain, made)
        )
        assert after > before + 2, (name, before, after)


def test_smooth_quant_sees_a_decoder_that_two_programs_share() -> None:
    """Norms of both, with a cache between; what has no norm before it is passed over."""
    made = quantize_pt2e(floating(), static(), BATCHES[:4], algorithms=[SmoothQuant(insert=False)])
    report = report_of(made["decode"])
    assert len(report.rows) >= 3
    assert {passed.name for _, passed in report.passed} == {"linear_6"}
