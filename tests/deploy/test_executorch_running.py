"""Methods run: memory, strides, wrong inputs, silence."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from support.lowering import Lowered
from support.processes import run_code

from pt2q.deploy.executorch import measure_latency
from pt2q.errors import InputShapeError, LoweringError


def test_outputs_have_memory_of_their_own(small: Lowered) -> None:
    loaded = small.program.load()
    (first,) = loaded(*small.inputs)
    kept = first.clone()
    (second,) = loaded(torch.zeros_like(small.inputs[0]))
    assert not torch.equal(first, second)
    assert torch.equal(first, kept)
    first.fill_(7.0)
    assert torch.equal(loaded(*small.inputs)[0], kept)
    del loaded
    gc.collect()
    assert torch.equal(second, small.program.load()(torch.zeros_like(small.inputs[0]))[0])


def test_a_method_outlives_its_program(small: Lowered, tmp_path: Path) -> None:
    # In a process of its own: what is guarded against here is a crash.
    path = small.program.save(tmp_path / "net.pte")
    torch.save(small.inputs[0], tmp_path / "x.pt")
    script = f"""
import gc, torch
from pt2q.deploy.executorch import load
x = torch.load({str(tmp_path / "x.pt")!r})
methods = [load({str(path)!r}).method() for _ in range(20)]
gc.collect()
junk = [bytearray(200_000) for _ in range(50)]
outputs = [method(x)[0] for method in methods]
assert all(torch.equal(outputs[0], other) for other in outputs)
del methods
gc.collect()
print("alive", float(outputs[0].sum()) == float(outputs[1].sum()))
"""
    done = run_code(script)
    assert (done.returncode, done.stdout.strip()) == (0, "alive True"), done.stderr


def test_inputs_that_do_not_fit(small: Lowered) -> None:
    loaded, (x,) = small.program.load(), small.inputs
    expected = loaded(x)[0]
    with pytest.raises(InputShapeError, match=r"takes 1 input\(s\), got 2"):
        loaded(x, x)
    with pytest.raises(InputShapeError, match=r"has to be torch.float32, got torch.float64"):
        loaded(x.double())
    with pytest.raises(InputShapeError, match=r"takes shapes up to \(1, 3, 32, 32\)"):
        loaded(x[0])
    with pytest.raises(InputShapeError, match=r"has to be a tensor, got list"):
        loaded(x.tolist())
    with pytest.raises(LoweringError, match=r"failed to run method 'forward'"):
        loaded(x[..., :16].contiguous())
    with pytest.raises(LoweringError, match=r"no method 'backward'"):
        loaded.method("backward")
    assert torch.equal(loaded(x)[0], expected)


def test_strided_inputs_are_made_dense(small: Lowered) -> None:
    loaded, (x,) = small.program.load(), small.inputs
    strided = x.transpose(2, 3).contiguous().transpose(2, 3)
    assert not strided.is_contiguous()
    assert torch.equal(loaded(strided)[0], loaded(x)[0])


def test_latency_is_measured_for_both(small: Lowered) -> None:
    pair = measure_latency(small.floating.load(), small.program.load(), small.inputs, repeats=3)
    assert all(0 < milliseconds < 1e4 for milliseconds in pair)
