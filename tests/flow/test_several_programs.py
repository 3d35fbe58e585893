"""Programs of one model are quantized together: one value, one set of parameters."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from support.nodes import nodes_of
from support.two_programs import Step, examples, generate, small_decoder, two_programs
from torch import Tensor, nn

from pt2q import QuantGraphModule, convert_pt2e, prepare_pt2e, sqnr
from pt2q.deploy.executorch import LoadedMethod, lower
from pt2q.errors import FlowError, NoDataError, SharedTensorError
from pt2q.ir import ops
from pt2q.ir.graph import named_tensors
from pt2q.ir.storage import place_of
from pt2q.passes import verified_passes
from pt2q.quantizers import StateQuantizer, XNNPACKQuantizer

PROMPT = 8
Programs = dict[str, QuantGraphModule]


@functools.cache
def prepared(state: bool = True) -> Programs:
    quantizer = XNNPACKQuantizer()
    with verified_passes():
        ready = prepare_pt2e(
            two_programs(small_decoder(), PROMPT), StateQuantizer(quantizer) if state else quantizer
        )
    for seed in (1, 2):
        generate(ready, seed, 8, PROMPT)
    return ready


@functools.cache
def converted(stored: bool = True) -> Programs:
    with verified_passes():
        return convert_pt2e(prepared(), fold_quantize_into_mutable_buffers=stored)


def expected(seed: int) -> Tensor:
    model = small_decoder()
    return generate({"prefill": model, "decode": model}, seed, 16, PROMPT)


def test_they_generate_as_the_float_model_does() -> None:
    done = copy.deepcopy(converted())
    # Within one copy they go on sharing their cache.
    found = generate(done, 9, 16, PROMPT)
    assert float(sqnr(expected(9), found)) > 22


def test_what_is_one_value_is_one_tensor_before_and_after() -> None:
    for programs in (prepared(), converted()):
        one, other = (named_tensors(programs[name]) for name in ("prefill", "decode"))
        shared = {n for n in one.keys() & other.keys() if not n.startswith("activation_post")}
        names = {name.removesuffix("_quantized") for name in shared}
        assert {"head.weight", "blocks.0.attention.keys"} <= names
        assert all(place_of(one[name]) == place_of(other[name]) for name in shared)


def test_a_cache_in_int8_has_one_scale_to_the_bit() -> None:
    done = converted()
    caches = [n for n in named_tensors(done["decode"]) if n.endswith((".keys", ".values"))]
    assert caches
    scales = {}
    for name, model in done.items():
        tensors = named_tensors(model)
        assert all(tensors[cache].dtype is torch.int8 for cache in caches)
        writes = nodes_of(model, ops.STORES)
        quantizes = [w.args[-1] for w in writes]
        scales[name] = [(q.args[1], q.args[2]) for q in quantizes]
    assert scales["prefill"] == scales["decode"]


def test_calibrating_one_moves_the_ranges_of_both() -> None:
    ready = prepare_pt2e(two_programs(small_decoder(), PROMPT), StateQuantizer(XNNPACKQuantizer()))
    words, at = examples(PROMPT)["prefill"]
    ready["prefill"](words, at)
    with pytest.raises(NoDataError, match=r"decode\."):
        convert_pt2e(ready)
    shared = {id(o) for o in ready["prefill"].children()} & {
        id(o) for o in ready["decode"].children()
    }
    assert len(shared) > 8


def test_mutated_buffers_stay_those_of_the_float_programs() -> None:
    for name, program in two_programs(small_decoder(), PROMPT).items():
        with torch.no_grad():
            again = torch.export.export(converted()[name], examples(PROMPT)[name])
        written = [
            set(p.run_decompositions({}).graph_signature.buffers_to_mutate.values())
            for p in (program, again)
        ]
        assert written[0] == written[1] != set()


class Reads(nn.Module):
    def __init__(self, writes: bool, size: int = 4) -> None:
        super().__init__()
        self.one = nn.Linear(size, size)
        self.register_buffer("seen", torch.zeros(1, size))
        self.writes = writes

    seen: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if self.writes:
            self.seen.add_(x)
        return self.one(x + self.seen)


def program_of(model: nn.Module, size: int = 4) -> torch.export.ExportedProgram:
    return torch.export.export(model.eval(), (torch.randn(1, size),))


def test_weights_that_differ_are_refused_by_name() -> None:
    one, other = program_of(Reads(True)), program_of(Reads(True))
    with pytest.raises(SharedTensorError, match=r"'one.weight'.*'a'.*'b'.*other numbers"):
        prepare_pt2e({"a": one, "b": other}, XNNPACKQuantizer())
    wide = program_of(Reads(True, 8), 8)
    with pytest.raises(SharedTensorError, match=r"float32 \(4, 4\).*float32 \(8, 8\)"):
        prepare_pt2e({"a": one, "b": wide}, XNNPACKQuantizer())


def test_state_that_one_only_reads_is_refused() -> None:
    writes, reads = Reads(True), Reads(False)
    reads.load_state_dict(writes.state_dict())
    with pytest.raises(SharedTensorError, match="'a' writes 'seen', and 'b' only reads it"):
        prepare_pt2e({"a": program_of(writes), "b": program_of(reads)}, XNNPACKQuantizer())


def test_no_program_at_all() -> None:
    with pytest.raises(FlowError, match="empty"):
        prepare_pt2e({}, XNNPACKQuantizer())


def test_executorch_runs_both_as_methods_of_one_file_over_one_cache() -> None:
    """32 tokens at once and 64 steps, as close to float as the single program in 96 steps."""
    programs = converted()
    program = lower(programs, examples(PROMPT))
    loaded = program.load()
    assert {"prefill", "decode"} <= set(loaded.method_names)
    run = {name: one_output(loaded.method(name)) for name in ("prefill", "decode")}
    assert float(sqnr(expected(9), generate(run, 9, 16, PROMPT))) > 22


def one_output(method: LoadedMethod) -> Step:
    return lambda words, at: method(words, at)[0]
