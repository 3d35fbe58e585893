"""A language model with a key-value cache, 64 steps after quantization, here and in the runtime."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from support.decoder import Decoder, decode, decoder, prompt
from support.laws import assert_laws
from support.nodes import nodes_of
from support.results import assert_same
from support.stateful_models import Copy, steps
from torch import Tensor

from pt2q import QuantGraphModule, convert_pt2e, prepare_pt2e, sqnr
from pt2q.deploy.executorch import LoadedMethod, lower
from pt2q.ir import ops
from pt2q.passes import StoreStateQuantized, run_passes, verified_passes
from pt2q.quantizers import (
    OnnxQDQQuantizer,
    StateQuantizer,
    WeightQuantizer,
    XNNPACKQuantizer,
    get_dynamic_activation_4bit_weight_config,
    get_symmetric_quantization_config,
)


def dynamic() -> XNNPACKQuantizer:
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
    return XNNPACKQuantizer().set_global(config)


def four_bits() -> WeightQuantizer:
    return WeightQuantizer(get_dynamic_activation_4bit_weight_config(group_size=32))


# Least SQNR in dB over all steps together, and of the worst step.
QUANTIZERS: dict[str, tuple[Any, float, float]] = {
    "static": (XNNPACKQuantizer, 34, 27),
    "dynamic": (dynamic, 40, 37),
    "8da4w": (four_bits, 21, 17),
}
TEST_PROMPT = 9


@functools.cache
def exported() -> tuple[Decoder, torch.export.ExportedProgram, Tensor]:
    model = decoder()
    with torch.no_grad():
        program = torch.export.export(model, prompt(0)[0])
        expected = torch.cat(list(decode(copy.deepcopy(model), TEST_PROMPT)))
    return model, program, expected


def prepared(quantizer: Any) -> QuantGraphModule:
    ready = prepare_pt2e(exported()[1], quantizer)
    for seed in (1, 2):
        for _ in decode(ready, seed):
            pass
    return ready


@functools.cache
def converted(name: str) -> QuantGraphModule:
    with torch.no_grad():
        return convert_pt2e(prepared(QUANTIZERS[name][0]()))


def runs(model: QuantGraphModule) -> Tensor:
    """The logits of all steps, of a copy whose cache is empty."""
    with torch.no_grad():
        return torch.cat(list(decode(copy.deepcopy(model), TEST_PROMPT)))


@pytest.mark.parametrize("name", QUANTIZERS)
def test_every_step_stays_close_to_float(name: str) -> None:
    model, _, expected = exported()
    _, overall, worst = QUANTIZERS[name]
    done = converted(name)
    assert_laws(done, converted=True)
    found = runs(done)
    assert sqnr(expected, found) > overall
    of_steps = [float(sqnr(a, b)) for a, b in zip(expected, found, strict=True)]
    assert len(of_steps) == 64 and min(of_steps) > worst
    # Errors do not pile up in the cache: late steps are as good as early ones.
    assert sum(of_steps[48:]) > sum(of_steps[:16]) - 16
    linears = sum(isinstance(m, torch.nn.Linear) for m in model.modules())
    stored = [n for n, b in done.named_buffers() if n.endswith("weight_quantized")]
    assert len(stored) == linears


def test_the_cache_is_empty_after_calibration() -> None:
    model, program, _ = exported()
    for module in (converted("static"), model):
        caches = {n: b for n, b in module.named_buffers() if n.endswith(("keys", "values"))}
        assert len(caches) == 4 and not any(b.any() for b in caches.values())
    assert not any(b.any() for n, b in program.state_dict.items() if n.endswith("keys"))


def test_exported_again_it_writes_the_same_caches() -> None:
    done = copy.deepcopy(converted("static"))
    again = torch.export.export(done, prompt(0)[0])
    with torch.no_grad():
        found = torch.cat(list(decode(again.module(), TEST_PROMPT)))
    assert_same(found, runs(converted("static")))

    def written(program: torch.export.ExportedProgram) -> set[str]:
        functional = program.run_decompositions({})
        return set(functional.graph_signature.buffers_to_mutate.values())

    assert written(again) == written(exported()[1]) and len(written(again)) == 4


@pytest.mark.parametrize("make", [XNNPACKQuantizer, OnnxQDQQuantizer.onnxruntime])
def test_decoding_with_attention_taken_apart(make: Any) -> None:
    with torch.no_grad(), verified_passes():
        done = convert_pt2e(prepared(make().set_decompositions(attention=True)))
    assert not nodes_of(done, ops.SDPA) and len(nodes_of(done, ops.MATMUL)) == 4
    assert sqnr(exported()[2], runs(done)) > 30


@pytest.mark.parametrize("attention", [False, True])
def test_decoding_from_a_cache_in_integers(attention: bool) -> None:
    rest = XNNPACKQuantizer().set_decompositions(attention=attention)
    done = integer_cache(rest)
    caches = {n: b for n, b in done.named_buffers() if n.endswith(("keys", "values"))}
    assert len(caches) == 4 and all(b.dtype == torch.int8 for b in caches.values())
    assert sqnr(exported()[2], runs(done)) > sqnr(exported()[2], runs(converted("static"))) - 1


@functools.cache
def integer_cache(rest: Any) -> QuantGraphModule:
    with torch.no_grad():
        done = convert_pt2e(prepared(StateQuantizer(rest)))
        return run_passes(done, [StoreStateQuantized()])


# -------------------------------------------------------------------------------- the runtime


def in_runtime(model: QuantGraphModule) -> tuple[LoadedMethod, int]:
    program = lower(copy.deepcopy(model), prompt(0)[0])
    assert program.delegation.quantized_left == ()
    return program.load(), len(program.buffer)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("name", "least"),
    [
        pytest.param("dynamic", 100, marks=pytest.mark.slow),
        # One rounding may fall on the other side, and the cache remembers it.
        pytest.param("static", 30, marks=pytest.mark.slow),
        pytest.param("8da4w", 45, marks=pytest.mark.slow),
    ],
)
def test_the_runtime_decodes_as_the_graph_does(name: str, least: float) -> None:
    method, size = in_runtime(converted(name))
    found = torch.cat([step[0] for step in (method(*x) for x in prompt(TEST_PROMPT))])
    graph = runs(converted(name))
    assert sqnr(graph, found) > least
    assert sqnr(exported()[2], found) > sqnr(exported()[2], graph) - 1
    floats = sum(p.numel() * 4 for p in exported()[0].parameters())
    assert size < floats


@pytest.mark.slow
def test_the_runtime_decodes_from_a_cache_in_integers() -> None:
    done = integer_cache(dynamic())
    method, _ = in_runtime(done)
    found = torch.cat([step[0] for step in (method(*x) for x in prompt(TEST_PROMPT))])
    assert sqnr(runs(done), found) > 40  # one rounding may fall on the other side


def test_written_buffers_start_in_the_runtime_where_they_start_in_the_graph() -> None:
    """The runtime alone would start them from zero."""
    model = Copy().eval()
    assert model.cache.any()
    program = torch.export.export(model, steps()[0])
    with torch.no_grad():
        done = convert_pt2e(prepare_pt2e(program, dynamic()))
        method = lower(copy.deepcopy(done), steps()[0]).load()
        for step in steps():
            assert sqnr(done(*step), method(*step)[0]) > 100
