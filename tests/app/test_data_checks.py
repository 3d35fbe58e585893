"""What looks wrong with calibration data is said with figures; what cannot be used, in a line."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.command_line import Run, fails
from torch import Tensor, nn
from torch.export import Dim

from pt2q.app.conversion import calibrated
from pt2q.app.data.checks import Look
from pt2q.app.data.growth import Growth, together
from pt2q.app.data.reading import read_batches
from pt2q.deploy.signature import Batch, Signature, signature_of
from pt2q.errors import CalibrationWarning, DataError, DataOrderWarning
from pt2q.quantizers import XNNPACKQuantizer


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, image: Tensor, depth: Tensor) -> Tensor:
        return self.linear(image) + 2 * depth


def _program(rows: int = 2, shapes: Any = None) -> torch.export.ExportedProgram:
    args = torch.randn(rows, 4), torch.randn(rows, 4)
    return torch.export.export(Two().eval(), args, dynamic_shapes=shapes)


@pytest.fixture(scope="module")
def signature() -> Signature:
    return signature_of(_program())


def _batches(count: int, scale: float = 1.0) -> list[Batch]:
    draw = torch.Generator().manual_seed(0)
    return [
        (scale * torch.randn(2, 4, generator=draw), torch.randn(2, 4, generator=draw))
        for _ in range(count)
    ]


def _said(signature: Signature, calibration: list[Batch], held_out: list[Batch]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        look = Look()
        for batch in calibration:
            look.see(batch)
        look.warn(signature, held_out)
    assert all(w.category is CalibrationWarning for w in caught)
    return [str(w.message) for w in caught]


def test_good_data_is_not_said(signature: Signature) -> None:
    batches = _batches(40)
    assert _said(signature, batches[:36], batches[36:]) == []


def test_what_looks_wrong(signature: Signature) -> None:
    zeros = [(torch.zeros(2, 4), depth) for _, depth in _batches(8)]
    (text,) = _said(signature, zeros, zeros[:1])
    assert "input 'image' is 0 everywhere" in text
    assert "all 6 batches are the same" in _said(signature, _batches(1) * 6, _batches(1))[0]
    assert "only 2 of 6 batches are different" in _said(signature, _batches(2) * 3, _batches(1))[0]
    one = [(a[:1].expand(2, 4), b[:1].expand(2, 4)) for a, b in _batches(4)]
    assert "every batch is one sample, repeated" in _said(signature, one, one)[0]
    (text,) = _said(signature, _batches(8), _batches(8, scale=5))
    assert "input 'image'" in text and "beyond the" in text


def test_a_range_that_still_grows() -> None:
    steady = _batches(40)
    growing = [*steady[:5], *((20 * a, b) for a, b in steady[5:6])]
    with pytest.warns(CalibrationWarning, match=r"last of 6 batches still widened \d of \d ranges"):
        calibrated(_program(), XNNPACKQuantizer(), growing, lambda items, _: items)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepared = calibrated(_program(), XNNPACKQuantizer(), steady, lambda items, _: items)
    assert not any(module._forward_pre_hooks for module in prepared.modules() if module != prepared)


def test_several_processes_see_what_one_sees(signature: Signature) -> None:
    draw = torch.Generator().manual_seed(3)
    values = [(1 + i) * torch.randn(8, generator=draw) for i in range(10)]
    batches = _batches(3) * 3

    def shown(numbers: range) -> tuple[Growth, Look]:
        growth, look = Growth(), Look()
        for number in numbers:
            growth.begin(number)
            growth.see("a", values[number])
            if number % 2:  # a body of a branch
                growth.see("b", values[number] / 2)
        for number in range(numbers.start, len(batches), numbers.step):
            look.see(batches[number])
        return growth, look

    one, alone = shown(range(10))
    for size in (1, 2, 3, 4):
        parts = [shown(range(rank, 10, size)) for rank in range(size)]
        assert together([growth for growth, _ in parts]) == one
        merged = Look()
        for _, look in parts:
            merged.add(look)
        assert merged == alone
    # Nobody saw anything: a run that goes on had been through all of it.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        together([Growth(), Growth()]).warn()
        Look().warn(signature, [])


def test_names_in_an_npz(tmp_path: Path, signature: Signature) -> None:
    image, depth = np.zeros((2, 4), np.float32), np.ones((2, 4), np.float32)
    path = tmp_path / "x.npz"
    np.savez(path, depth=depth, image=image)
    ((first, _),) = read_batches(path, signature)
    assert float(first.sum()) == 0
    np.savez(path, depth=depth, img=image)
    with pytest.raises(DataError, match=r"inputs are \['image', 'depth'\], got \['depth', 'img'\]"):
        read_batches(path, signature)
    np.savez(path, deep=depth, img=image)
    with pytest.warns(DataOrderWarning, match="in order: deep for image, img for depth"):
        read_batches(path, signature)
    np.savez(path, image, depth)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_batches(path, signature)


def test_other_kinds_of_tensors(tmp_path: Path, signature: Signature) -> None:
    x, path = torch.ones(2, 4), tmp_path / "x.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        others = {
            "meta": x.to("meta"),
            "sparse": x.to_sparse(),
            "sparse_csr": x.to_sparse_csr(),
            "nested": torch.nested.nested_tensor([x, x]),
        }
    for name, other in others.items():
        torch.save((other, x), path)
        with pytest.raises(DataError, match=f"holds a .*{name} tensor|not readable"):
            read_batches(path, signature)
    for mixed in ({"image": x, 3: x}, {1: x, 2: x}, (x, "y"), [(x, x), {"image": x}]):
        torch.save(mixed, path)
        with pytest.raises(DataError, match="calibration data"):
            read_batches(path, signature)


def test_fewer_than_exported_where_that_may_be(tmp_path: Path) -> None:
    rows = Dim("rows", max=64)
    free = signature_of(_program(4, ({0: rows}, {0: rows})))
    np.savez(tmp_path / "x.npz", *[np.ones((1, 4), np.float32)] * 2)
    (batch,) = read_batches(tmp_path / "x.npz", free)
    assert len(batch[0]) == 1
    with pytest.raises(DataError, match="empty, not one batch of 4"):
        read_batches(tmp_path / "x.npz", signature_of(_program(4)))


def test_a_token_that_the_model_has_not(run: Run, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 4)).eval()
    program = torch.export.export(model, (torch.ones(1, 3, dtype=torch.long),))
    torch.export.save(program, tmp_path / "m.pt2")
    np.savez(tmp_path / "x.npz", np.array([[1, 2, 3], [4, 5, 99], [1, 2, 3]]))
    given = (tmp_path / "m.pt2", "--calibration", tmp_path / "x.npz")
    # The second of three is held out.
    message = "held-out data: the model fails on batch 1: IndexError"
    code, text, err = run("quantize", *given, "-o", tmp_path / "m.pte")
    assert (code, text) == (1, "") and message in err.splitlines()[-1]
    assert not (tmp_path / "m.pte").exists()
    for command in ("compare", "sensitivity"):
        fails(run(command, *given), 1, r"data to measure on: the model fails on batch \d: Index")
    np.savez(tmp_path / "x.npz", np.array([[1, 2, 3], [4, 5, 6], [99, 2, 3]]))
    fails(
        run("quantize", *given, "-o", tmp_path / "m.pte"),
        1,
        "calibration data: the model fails on batch 2: IndexError",
    )


def test_held_out_from_a_file(run: Run, folder: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(1).standard_normal((6, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "kept.npz", images)
    code, text, _ = run(
        *("quantize", folder / "small.pt2", "--calibration", folder / "images.npz"),
        *("--held-out", tmp_path / "kept.npz", "-o", tmp_path / "m.pte"),
    )
    assert code == 0 and "3 more held out" in text


def test_a_recipe_nested_deeply(run: Run, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("a = " + "[" * 5000 + "]" * 5000)
    fails(
        run(
            *("quantize", folder / "small.pt2", "--calibration", folder / "images.npz"),
            *("--recipe", tmp_path / "r.toml", "-o", tmp_path / "m.pte"),
        ),
        1,
        "nested too deeply|no valid TOML",
    )
