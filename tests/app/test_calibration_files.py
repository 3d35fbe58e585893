"""Calibration files in all their forms."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from support.command_line import Run, Small, fails
from torch import Tensor, nn

from pt2q import sqnr
from pt2q.app.data.reading import read_batches
from pt2q.app.program_file import read_program
from pt2q.deploy.executorch import load
from pt2q.deploy.signature import dynamic_shapes, signature_of, unbounded_sizes
from pt2q.errors import DataError

IMAGES = np.zeros((8, 3, 8, 8), np.float32)


@pytest.mark.parametrize(
    ("arrays", "pattern"),
    [
        ({}, r"takes 1 input\(s\) \['image'\], got 0"),
        ({"a": IMAGES, "b": IMAGES}, r"takes 1 input\(s\) \['image'\], got 2"),
        ({"a": IMAGES.astype(np.float64)}, r"expected image: torch.float32.*got torch.float64"),
        ({"a": IMAGES[:, :1]}, r"expected image: torch.float32 \(\?, 3, 8, 8\), got .*8, 1, 8, 8"),
        ({"a": IMAGES[0]}, r"got torch.float32 \(3, 8, 8\)"),
        ({"a": IMAGES[:1]}, r"empty, not one batch of 2"),
        ({"a": IMAGES[:0]}, r"empty, not one batch of 2"),
        ({"a": IMAGES[:3]}, r"at least two batches"),
        ({"a": np.where(IMAGES == 0, np.nan, IMAGES)}, r"float32|NaN"),
        ({"a": IMAGES + np.float32(np.nan)}, r"NaN or infinity in input image"),
        ({"a": np.array([{}])}, r"not readable"),
    ],
)
def test_bad_arrays(
    run: Run, folder: Path, tmp_path: Path, arrays: dict[str, np.ndarray], pattern: str
) -> None:
    data = tmp_path / "data.npz"
    np.savez(data, **arrays)
    call = ("quantize", folder / "small.pt2", "--calibration", data, "-o", tmp_path / "x.pte")
    fails(run(*call), 1, pattern)
    assert [p.name for p in tmp_path.iterdir()] == ["data.npz"]


def test_bad_calibration_files(run: Run, folder: Path, tmp_path: Path) -> None:
    def call(data: Path) -> tuple[int, str, str]:
        return run(
            *("quantize", folder / "small.pt2", "--calibration", data),
            *("-o", tmp_path / "x.pte"),
        )

    fails(call(tmp_path / "missing.npz"), 1, "missing.npz: no such file or folder")
    (tmp_path / "empty").mkdir()
    fails(call(tmp_path / "empty"), 1, "no .npz and no .pt")
    for name in ("cut.npz", "cut.pt", "text.csv"):
        (tmp_path / name).write_bytes((folder / "images.npz").read_bytes()[:100])
        fails(call(tmp_path / name), 1, name)
    torch.save([[1, 2]], tmp_path / "list.pt")
    fails(call(tmp_path / "list.pt"), 1, "expected tensors, got list")
    torch.save(None, tmp_path / "none.pt")
    fails(call(tmp_path / "none.pt"), 1, "expected tensors, got NoneType")
    torch.save(Small(), tmp_path / "module.pt")
    fails(call(tmp_path / "module.pt"), 1, "holds more than tensors, .*would run code")
    fails(call(tmp_path / f"{'x' * 300}.npz"), 1, "no such file or folder")
    (tmp_path / f"{'x' * 245}.npz").write_bytes((folder / "images.npz").read_bytes()[:500])
    fails(call(tmp_path / f"{'x' * 245}.npz"), 1, "not readable")


def _npz(path: Path, shape: tuple[int, ...], values: bytes) -> None:
    """An archive with an array whose header says a shape, whatever values follow."""
    with zipfile.ZipFile(path, "w") as archive, archive.open("image.npy", "w") as member:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(member, header)
        member.write(values)


def test_archives_that_do_not_hold_what_they_say(run: Run, folder: Path, tmp_path: Path) -> None:
    def call(data: Path) -> tuple[int, str, str]:
        given = (folder / "small.pt2", "--calibration", data)
        return run("quantize", *given, "-o", tmp_path / "x.pte")

    data = tmp_path / "x.npz"
    for shape, message in (((2**40, 3, 8, 8), r"image.npy is \d+ bytes short"), ((-2, 3), "short")):
        _npz(data, shape, b"")
        fails(call(data), 1, message)
    np.savez_compressed(data, image=np.random.default_rng(0).random((8, 3, 8, 8), np.float32))
    packed = bytearray(data.read_bytes())
    packed[1000:1060] = bytes(60)
    data.write_bytes(packed)
    fails(call(data), 1, "not readable|NaN or infinity")
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("notes.txt", "hello")
    fails(call(data), 1, "not readable")
    np.savez(data, image=np.array(["a", "b"]))
    fails(call(data), 1, "not readable: TypeError")
    assert [p.name for p in tmp_path.iterdir()] == ["x.npz"]


def test_forms_of_data_mean_the_same(folder: Path, tmp_path: Path) -> None:
    signature = signature_of(read_program(folder / "masked.pt2"))
    assert [str(item) for item in signature.inputs] == [
        "x: torch.float32 (3, 6)",
        "mask: torch.float32 (3, 4)",
    ]
    x, mask = torch.randn(9, 6), torch.rand(9, 4)
    np.savez(tmp_path / "names.npz", mask=mask.numpy(), x=x.numpy())
    np.savez(tmp_path / "order.npz", x.numpy(), mask.numpy())
    torch.save((x, mask), tmp_path / "tuple.pt")
    torch.save({"mask": mask, "x": x}, tmp_path / "dict.pt")
    torch.save([(x[:3], mask[:3]), (x[3:], mask[3:])], tmp_path / "list.pt")
    parts = tmp_path / "folder"
    parts.mkdir()
    torch.save((x[:6], mask[:6]), parts / "0.pt")
    np.savez(parts / "1.npz", x[6:].numpy(), mask[6:].numpy())
    (parts / "notes.txt").write_text("not data")
    names = ("names.npz", "order.npz", "tuple.pt", "dict.pt", "list.pt", "folder")
    for name in names:
        batches = read_batches(tmp_path / name, signature)
        assert len(batches) == 3, name
        assert torch.equal(torch.cat([b[0] for b in batches]), x)
        assert torch.equal(torch.cat([b[1] for b in batches]), mask)


def test_constants_go_back_to_their_places(folder: Path) -> None:
    program = read_program(folder / "masked.pt2")
    signature = signature_of(program)
    x, mask = torch.randn(3, 6), torch.rand(3, 4)
    assert signature.constants == ((1, 0.5),)
    args, kwargs = signature.call((x, mask))
    assert args[1] == 0.5
    torch.testing.assert_close(
        program.module()(*args, **kwargs)[0],
        kwargs["mask"] * 0 + mask * (program.module()(*args, **kwargs)[1]),
    )


def test_wrong_names_and_lengths(folder: Path, tmp_path: Path) -> None:
    signature = signature_of(read_program(folder / "masked.pt2"))
    torch.save({"x": torch.randn(3, 6), "msk": torch.rand(3, 4)}, tmp_path / "names.pt")
    with pytest.raises(DataError, match=r"inputs are \['x', 'mask'\], got \['msk', 'x'\]"):
        read_batches(tmp_path / "names.pt", signature)
    torch.save((torch.randn(3, 6), torch.rand(6, 4)), tmp_path / "lengths.pt")
    with pytest.raises(DataError, match=r"different lengths \[3, 6\]"):
        read_batches(tmp_path / "lengths.pt", signature)


def test_a_dynamic_batch(run: Run, folder: Path, tmp_path: Path) -> None:
    shapes = {"image": {0: torch.export.Dim("n", min=1, max=8)}}
    exported = torch.export.export(
        Small().eval(), (torch.randn(4, 3, 8, 8),), dynamic_shapes=shapes
    )
    torch.export.save(exported, tmp_path / "dynamic.pt2")
    assert signature_of(read_program(tmp_path / "dynamic.pt2")).batch == 4
    out = tmp_path / "dynamic.pte"
    code, _, err = run(
        "quantize", tmp_path / "dynamic.pt2", "--calibration", folder / "images.npz", "-o", out
    )
    assert (code, err) == (0, "")
    loaded = load(out)
    assert [loaded(torch.randn(n, 3, 8, 8))[0].shape[0] for n in (1, 4, 8)] == [1, 4, 8]


def test_one_sample_is_a_batch_where_the_batch_is_dynamic(tmp_path: Path) -> None:
    shapes = ({0: torch.export.Dim("n", max=8)},)
    program = torch.export.export(
        nn.Linear(4, 4).eval(), (torch.randn(2, 4),), dynamic_shapes=shapes
    )
    np.savez(tmp_path / "one.npz", np.ones((1, 4), np.float32))
    (only,) = read_batches(tmp_path / "one.npz", signature_of(program))
    assert tuple(only[0].shape) == (1, 4)


class Sums(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        found: Tensor = self.layer(x) + y.sum()
        return found


def test_sizes_without_a_bound_are_those_of_the_data(run: Run, tmp_path: Path) -> None:
    torch.manual_seed(0)
    shapes = {"x": {0: torch.export.Dim.AUTO}, "y": {0: torch.export.Dim.AUTO}}
    args = (torch.randn(2, 6), torch.randn(3))
    exported = torch.export.export(Sums().eval(), args, dynamic_shapes=shapes)
    torch.export.save(exported, tmp_path / "any.pt2")
    batches = [(torch.randn(n, 6), torch.randn(n + 1)) for n in (2, 5, 9, 3)]
    (tmp_path / "data").mkdir()
    for number, batch in enumerate(batches):
        torch.save({"x": batch[0], "y": batch[1]}, tmp_path / "data" / f"{number}.pt")
    program = read_program(tmp_path / "any.pt2")
    assert unbounded_sizes(program) == {"x": (0,), "y": (0,)}
    bounded = dynamic_shapes(program, signature_of(program), batches)
    assert [shape[0].max for shape in bounded] == [9, 10]
    out = tmp_path / "any.pte"
    code, text, err = run(
        *("quantize", tmp_path / "any.pt2", "--calibration", tmp_path / "data", "-o", out),
        *("--held-out", tmp_path / "data"),
    )
    assert (code, err) == (0, "")
    assert "x (9, 6)" in text and "y (10,)" in text
    loaded = load(out)
    for x, y in batches:
        assert sqnr(exported.module()(x, y), loaded(x, y)[0]) > 25
