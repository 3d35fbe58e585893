"""Compiled and packaged networks compute what the converted ones do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.nets import NETS
from support.samples import images
from support.x86_inductor import Net, converted
from torch import nn
from torch.nn import functional as F

from pt2q import convert_pt2e, prepare_pt2e, sqnr
from pt2q.deploy import inductor
from pt2q.deploy.describing import describe
from pt2q.errors import (
    FlowError,
    InputShapeError,
)
from pt2q.quantizers import (
    X86InductorQuantizer,
)

ROWS = (torch.randn(4, 32, generator=torch.Generator().manual_seed(2)),)


def test_compiled_network_computes_what_the_converted_one_does():
    net = NETS["small_mobilenet"]
    model, quantized = converted(net.build(), net.inputs(2), X86InductorQuantizer())
    inputs = net.inputs(2)
    before = (torch._inductor.config.freezing, torch.is_grad_enabled())
    compiled = inductor.compile(quantized)
    with pytest.raises(FlowError, match="first call"):
        _ = compiled.fusion
    result = compiled(*inputs)
    assert (torch._inductor.config.freezing, torch.is_grad_enabled()) == before
    assert sqnr(quantized(*inputs), result) > 60
    assert sqnr(model(*inputs), result) > 15
    assert not compiled.fusion.not_fused
    assert torch.equal(compiled(*inputs), result)
    with pytest.raises(InputShapeError):
        compiled(*images(2, 48))


def sums(n, x, y, z):
    """Every way a kernel might add into memory that is not its own."""
    return (
        x + n.linear(x),
        n.linear2(x) + y,
        F.relu(n.linear(y) + z.clone()),
        F.relu(n.linear2(y) + n.position),
        n.linear(z) + n.position,
    )


SUMS = tuple(torch.randn(4, 32, generator=torch.Generator().manual_seed(i)) for i in range(3))


def check_sums(run, model):
    expected = model(*SUMS)
    for _ in range(3):  # a constant that is added into shows from the second call on
        given = tuple(x.clone() for x in SUMS)
        for result, wanted in zip(run(*given), expected, strict=True):
            torch.testing.assert_close(result, wanted, rtol=0, atol=1e-5)
        assert all(torch.equal(a, b) for a, b in zip(given, SUMS, strict=True))


def test_compiled_sums_leave_inputs_and_parameters_alone():
    _, model = converted(sums, SUMS)
    compiled = inductor.compile(model)
    check_sums(compiled, model)
    assert any("sum" in row.detail for row in compiled.fusion)


def test_a_new_shape_is_compiled_in_int8_too():
    model = Net(lambda n, x: n.linear(x)).eval()
    shapes = ({0: torch.export.Dim.AUTO},)
    exported = torch.export.export(model, ROWS, dynamic_shapes=(shapes,))
    prepared = prepare_pt2e(exported, X86InductorQuantizer())
    prepared(*ROWS)
    quantized = convert_pt2e(prepared)
    compiled = inductor.compile(quantized)
    for rows in (4, 9, 5):
        x = torch.randn(rows, 32)
        torch.testing.assert_close(compiled(x), quantized(x), rtol=0, atol=1e-5)
        assert len(compiled.fusion.fused) == 1


def test_package_runs_and_leaves_its_inputs_alone(tmp_path: Path):
    _, model = converted(sums, SUMS)
    path = inductor.package(model, SUMS, tmp_path / "new" / "model.pt2")
    assert [file.name for file in path.parent.iterdir()] == ["model.pt2"]
    loaded = inductor.load_package(path)
    check_sums(loaded, model)
    found = describe(path)
    assert found is not None and found.provenance == loaded.provenance
    assert found.provenance["statements"][0] == "for Inductor"
    assert [str(slot) for slot in found.methods[0].inputs] == [
        f"float32[{', '.join(map(str, x.shape))}]" for x in SUMS
    ]
    assert found.size == path.stat().st_size and max(map(len, found.text(80).splitlines())) <= 80


class Inputs(nn.Module):
    """Images in any memory order, a nested input, a number that is compiled in, a keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x, y, k=2, *, z):
        return self.head(F.relu(self.conv(x)).mean((2, 3))) * k + y["q"].to(torch.float32) + z


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory):
    torch.manual_seed(0)
    image = torch.randn(1, 3, 8, 8).expand(4, 3, 8, 8)  # no stride of it may be compiled in
    args = (image, {"q": torch.randint(0, 3, (4, 4))}, 2)
    kwargs = {"z": torch.randn(1)}
    batch = torch.export.Dim("b", min=2, max=16)
    shapes = {"x": {0: batch}, "y": {"q": {0: batch}}, "k": None, "z": None}
    program = torch.export.export(Inputs().eval(), args, kwargs, dynamic_shapes=shapes)
    prepared = prepare_pt2e(program, X86InductorQuantizer())
    prepared(*args, **kwargs)
    model = convert_pt2e(prepared)
    path = tmp_path_factory.mktemp("package") / "inputs.pt2"
    inductor.package(model, args, path, kwargs=kwargs, dynamic_shapes=shapes)
    return model, inductor.load_package(path), args, kwargs


@pytest.mark.parametrize("batch", [2, 7, 16])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_a_package_takes_tensors_in_any_memory_order(packaged, batch, order):
    model, loaded, _, kwargs = packaged
    x = torch.randn(batch, 3, 8, 8).to(memory_format=order)
    y = {"q": torch.randint(0, 3, (4, batch)).t()}
    keep = x.clone(), y["q"].clone()
    assert sqnr(model(x, y, 2, **kwargs), loaded(x, y, 2, **kwargs)) > 100
    assert torch.equal(keep[0], x) and torch.equal(keep[1], y["q"])


def test_a_package_refuses_what_its_code_would_read_past(packaged):
    _, loaded, (_, y, _), kwargs = packaged
    image, table = torch.randn(4, 3, 8, 8), y["q"]
    cases = [
        ((image.double(), y, 2), "input 'x' is of type float32, found float64"),
        ((image.numpy(), y, 2), "input 'x' is a tensor of float32, found ndarray"),
        ((image[..., 1:], y, 2), "input 'x' has size 8 in dimension 3"),
        ((image[0], y, 2), "input 'x' has 4 dimensions"),
        ((image[:1], {"q": table[:1]}, 2), "input 'x' has size from 2 to 16 in dimension 0"),
        ((image, {"q": table[:3]}, 2), "input 'y_q' has size 4, as another input"),
        ((image, {"r": table}, 2), "nested as exported"),
        ((image, y, 3), "input 'k' was compiled in as 2, found 3"),
        ((image, y), "takes 4 input"),
    ]
    for args, message in cases:
        with pytest.raises(InputShapeError, match=message):
            loaded(*args, **kwargs)
    with pytest.raises(InputShapeError, match="other keyword inputs"):
        loaded(image, y, 2)
    assert loaded(image, y, 2, **kwargs).shape == (4, 4)
