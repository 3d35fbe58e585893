"""Real programs, written to disk and run by the ExecuTorch runtime."""

from __future__ import annotations

import gc
import os
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from support.convnets import MobileNetV2
from support.nets import NETS, image_net
from support.samples import images
from torch import Tensor, nn
from torch.nn import functional as F

from pt2q import convert_pt2e, prepare_pt2e, sqnr
from pt2q.deploy.executorch import Delegation, Program, load, lower, measure_latency
from pt2q.deploy.executorch.delegation import delegation_of
from pt2q.deploy.optional import optional_modules
from pt2q.errors import DataError, InputShapeError, LoweringError, MissingDependencyError
from pt2q.files import SaveError, ensure_writable
from pt2q.quantizers import XNNPACKQuantizer, get_symmetric_quantization_config


def quantized(
    model: nn.Module, *batches: tuple[Tensor, ...], dynamic: bool = False, **export: object
) -> nn.Module:
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=dynamic)
    exported = torch.export.export(model, batches[0], **export)
    prepared = prepare_pt2e(exported, XNNPACKQuantizer().set_global(config))
    with torch.no_grad():
        for batch in batches:
            prepared(*batch)
    return convert_pt2e(prepared)


@dataclass(frozen=True)
class Lowered:
    model: nn.Module
    converted: nn.Module
    inputs: tuple[Tensor, ...]
    floating: Program
    program: Program


@pytest.fixture(scope="module")
def small() -> Lowered:
    stages = ((1, 8, 1, 1), (4, 16, 2, 2))
    net = image_net(lambda: MobileNetV2(10, stages, stem=8, head=32), 32)
    model = net.build()
    converted = quantized(model, *(net.inputs(1, seed) for seed in range(24)))
    inputs = net.inputs(1, 99)
    return Lowered(model, converted, inputs, lower(model, inputs), lower(converted, inputs))


# ---------------------------------------------------------------------------- lowering, values


class CalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x) * 40)


def test_a_bias_that_two_calls_share_is_right_in_both() -> None:
    """The runtime stores a bias in the scale of one call; trained models come with it tied."""
    from support.small_quantizers import SmallQuantizer

    model = CalledTwice().eval()
    batches = [torch.randn(4, 8) for _ in range(4)]
    prepared = prepare_pt2e(torch.export.export(model, (batches[0],)), SmallQuantizer())
    for batch in batches:
        prepared(batch)
    converted = convert_pt2e(prepared)
    (found,) = lower(converted, (batches[0],)).load()(batches[0])
    assert sqnr(converted(batches[0]), found) > 35


def test_everything_is_delegated(small: Lowered) -> None:
    got = small.program.delegation
    assert (got.portable, got.quantized_left, got.blobs) == ((), (), 1)
    assert got.left == 0
    assert got.delegated > 20


def test_runtime_agrees_with_the_graph(small: Lowered) -> None:
    loaded, reference = small.program.load(), small.floating.load()
    batches = [images(1, 32, seed) for seed in range(100, 120)]
    with torch.no_grad():
        floating = torch.cat([small.model(*x) for x in batches])
        graph = torch.cat([small.converted(*x) for x in batches])
    ran = torch.cat([loaded(*x)[0] for x in batches])
    assert sqnr(graph, ran) > 25
    assert sqnr(floating, ran) > sqnr(floating, graph) - 1.0
    assert sqnr(floating, ran) > 20
    again = torch.cat([reference(*x)[0] for x in batches])
    torch.testing.assert_close(again, floating, rtol=1e-4, atol=1e-5)


def test_one_linear_is_right_to_one_step() -> None:
    torch.manual_seed(0)
    model = nn.Linear(16, 8).eval()
    batches = [(torch.randn(4, 16),) for _ in range(4)]
    converted = quantized(model, *batches)
    (ran,) = lower(converted, batches[0]).load()(*batches[0])
    expected = converted(*batches[0])
    step = expected.unique().diff().min()
    assert (ran - expected).abs().max() <= 1.01 * step


def test_dynamic_quantization_runs() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8)).eval()
    inputs = (torch.randn(1, 32),)  # one token, for which per tensor and per token are the same
    program = lower(quantized(model, inputs, dynamic=True), inputs)
    assert program.delegation.quantized_left == ()
    assert sqnr(model(*inputs), program.load()(*inputs)[0]) > 30


def test_dynamic_batch() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval()
    shapes = ({0: torch.export.Dim("batch", min=1, max=32)},)
    inputs = (torch.randn(16, 3, 8, 8),)
    converted = quantized(model, inputs, dynamic_shapes=shapes)
    loaded = lower(converted, inputs, dynamic_shapes=shapes).load()
    for batch in (1, 16, 32):
        x = torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(batch))
        assert sqnr(model(x), loaded(x)[0]) > 25
    with pytest.raises(InputShapeError, match=r"up to \(32, 3, 8, 8\), got \(33, 3, 8, 8\)"):
        loaded(torch.randn(33, 3, 8, 8))


def test_keyword_inputs_and_many_outputs() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, *, bias: Tensor) -> tuple[Tensor, Tensor]:
            return F.relu(x + bias), x * bias

    x, bias = torch.randn(2, 4), torch.randn(2, 4)
    outputs = lower(Two(), (x,), kwargs={"bias": bias}).load()(x, bias)
    torch.testing.assert_close(outputs, (F.relu(x + bias), x * bias))


def test_what_is_left_to_portable_kernels_is_named() -> None:
    class Sorts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cumsum(F.relu(x + x), 1) + torch.cumsum(x, 1)

    delegation = lower(Sorts(), (torch.randn(2, 4),)).delegation
    assert delegation.portable == (("aten.cumsum.default", 2),)
    assert delegation.left == 2
    assert "2 x aten.cumsum.default" in str(delegation)
    assert str(delegation).startswith(f"{delegation.delegated} of {delegation.delegated + 2} ")


def test_quantized_compute_that_is_left_is_named(small: Lowered) -> None:
    exported = torch.export.export(small.converted, small.inputs)
    (exir,) = optional_modules("executorch.exir", extra="executorch")
    edge = exir.to_edge_transform_and_lower(exported)  # no partitioner: nothing is delegated
    got = delegation_of(edge.exported_program().graph_module)
    assert (got.delegated, got.blobs) == (0, 0)
    convolutions = [name for name in got.quantized_left if "convolution" in name]
    expected = sum(isinstance(m, nn.Conv2d) for m in small.model.modules())
    assert len(convolutions) == expected
    assert f"not delegated: {convolutions[0]}" in str(got)


# ---------------------------------------------------------------------------- lowering, errors


def test_uint8_activations_are_refused_by_name() -> None:
    from pt2q.ir.ops import QUANTIZE

    class Unsigned(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            quantize = torch.ops.quantized_decomposed.quantize_per_tensor.default
            dequantize = torch.ops.quantized_decomposed.dequantize_per_tensor.default
            assert quantize in QUANTIZE
            q = quantize(x, 0.1, 128, 0, 255, torch.uint8)
            return F.relu(dequantize(q, 0.1, 128, 0, 255, torch.uint8))

    with pytest.raises(LoweringError, match=r"quantize_per_tensor.* is uint8.*int8 alone"):
        lower(Unsigned(), (torch.randn(2, 2),))


def test_a_model_that_does_not_export() -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(LoweringError, match=r"torch.export could not capture") as caught:
        lower(Branches(), (torch.randn(2),))
    assert caught.value.__cause__ is not None


def test_what_executorch_cannot_lower_is_named() -> None:
    class Spectrum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.rfft(x).abs()

    with pytest.raises(LoweringError, match=r"mismatched dtypes: .*aten.abs.*complex64"):
        lower(Spectrum(), (torch.randn(2, 8),))


@pytest.mark.parametrize("module", ["executorch", "executorch.runtime"])
def test_missing_executorch(monkeypatch: pytest.MonkeyPatch, module: str, small: Lowered) -> None:
    for name in list(sys.modules):
        if name == module or name.startswith(module + "."):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=r"pip install \"pt2q\[executorch\]\""):
        if module == "executorch":
            lower(small.model, small.inputs)
        else:
            load(small.program.buffer)


# ------------------------------------------------------------------------------- save and load


def test_save_and_load(small: Lowered, tmp_path: Path) -> None:
    path = small.program.save(tmp_path / "new" / "folder" / "net.pte")
    assert path.read_bytes() == small.program.buffer
    assert [p.name for p in path.parent.iterdir()] == ["net.pte"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
    loaded = load(path)
    path.unlink()  # the file was read whole
    assert torch.equal(loaded(*small.inputs)[0], small.program.load()(*small.inputs)[0])
    assert loaded.method_names == ("forward",)


def test_an_interrupted_save_keeps_the_old_file(
    small: Lowered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.pte"
    path.write_bytes(b"old")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        small.program.save(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_save_where_nothing_can_be_written(small: Lowered, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for target in (tmp_path / "file" / "net.pte", tmp_path):
        with pytest.raises(SaveError, match=r"cannot write .*(directory|folder)"):
            small.program.save(target)
        with pytest.raises(SaveError, match=r"cannot write"):
            ensure_writable(target)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("keep", [0, 10, 0.5, -100])
def test_a_truncated_program(small: Lowered, tmp_path: Path, keep: float) -> None:
    data = small.program.buffer
    path = tmp_path / "cut.pte"
    path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(DataError, match=r"cut.pte: .*not a complete ExecuTorch program"):
        load(path)


def test_garbage_and_missing_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match=r"not a complete .*identifier"):
        load(b"no program at all" * 1000)
    with pytest.raises(DataError, match=r"missing.pte: No such file"):
        load(tmp_path / "missing.pte")
    assert capfd.readouterr().err == ""  # the native log went into the message


# --------------------------------------------------------------------------------------- running


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
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
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


def test_importing_and_lowering_stays_quiet(tmp_path: Path) -> None:
    script = """
import logging, torch
before = (logging.getLogger().level, list(logging.getLogger().handlers))
from pt2q.deploy.executorch import lower
program = lower(torch.nn.ReLU(), (torch.randn(2),))
print(program.load()(torch.tensor([-1.0, 1.0]))[0].tolist())
assert (logging.getLogger().level, list(logging.getLogger().handlers)) == before
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr, done.returncode) == ("[0.0, 1.0]", "", 0)


# ------------------------------------------------------------------------------------ whole nets


def test_delegation_prints_in_order() -> None:
    delegation = Delegation(3, 2, (("aten.a", 2), ("aten.b", 1)), ("convolution_1",))
    assert str(delegation) == (
        "3 of 6 operators in 2 XNNPACK blob(s)\n"
        "  portable:    2 x aten.a\n"
        "  portable:    1 x aten.b\n"
        "  quantized but not delegated: convolution_1"
    )


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("mobilenet_v2", 10), ("resnet18", 15)])
def test_whole_network(name: str, least: float) -> None:
    net = NETS[name]
    model = net.build()
    converted = quantized(model, *(net.inputs(1, seed) for seed in range(4)))
    inputs = net.inputs(1, 99)
    program, floating = lower(converted, inputs), lower(model, inputs)
    assert program.delegation.portable == ()
    assert len(floating.buffer) > 3.6 * len(program.buffer)
    # Of random weights a single input says little: one rounding on the other side moves it by 2 dB.
    held_out = [net.inputs(1, seed) for seed in range(99, 107)]
    method = program.load()
    ran = torch.cat([method(*x)[0] for x in held_out])
    with torch.no_grad():
        reference = torch.cat([model(*x) for x in held_out])
        graph = torch.cat([converted(*x) for x in held_out])
    assert sqnr(reference, ran) > sqnr(reference, graph) - 1.0
    assert sqnr(reference, ran) > least
