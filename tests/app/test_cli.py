"""The command line, in this process where that will do, and once as a user starts it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pt2q import __version__
from pt2q.app import cli
from pt2q.app.calibration import read_batches, read_program, signature_of
from pt2q.deploy.executorch import load
from pt2q.errors import DataError

Run = Callable[..., tuple[int, str, str]]


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, image: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool2d(F.relu(self.conv(image)), 1)
        return self.head(torch.flatten(pooled, 1))


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)

    def forward(self, x: Tensor, scale: float, *, mask: Tensor) -> tuple[Tensor, Tensor]:
        y = self.linear(x) * scale
        return y * mask, y


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    torch.manual_seed(0)
    torch.export.save(
        torch.export.export(Small().eval(), (torch.randn(2, 3, 8, 8),)), folder / "small.pt2"
    )
    inputs, mask = (torch.randn(3, 6), 0.5), {"mask": torch.ones(3, 4)}
    torch.export.save(torch.export.export(Masked().eval(), inputs, mask), folder / "masked.pt2")
    images = np.random.default_rng(0).standard_normal((21, 3, 8, 8)).astype(np.float32)
    np.savez(folder / "images.npz", images)
    return folder


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    def run(*args: object) -> tuple[int, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main([str(arg) for arg in args])
        printed = capfd.readouterr()
        return int(caught.value.code or 0), printed.out, printed.err

    return run


def fails(result: tuple[int, str, str], code: int, pattern: str) -> None:
    """One readable line on standard error, nothing on standard output."""
    assert result[0] == code
    assert result[1] == ""
    assert result[2].startswith("pt2q: ")
    assert result[2].count("\n") == 1, result[2]
    assert re.search(pattern, result[2]), result[2]


# ------------------------------------------------------------------------------------- what works


def test_quantize(run: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "small.pte"
    code, text, err = run(
        "quantize", folder / "small.pt2", "--calibration", folder / "images.npz", "-o", out
    )
    assert (code, err) == (0, "")
    # 21 images make 10 batches of 2, and the last tenth is held out
    assert "9 batch(es), 1 more held out" in text
    assert re.search(r"float \d+\.\d+ MB, int8 \d+\.\d+ MB, \d\.\d\dx (smaller|larger)", text)
    assert float(re.search(r"(\d+\.\d) dB", text)[1]) > 25  # type: ignore[index]
    assert re.search(r"runs on XNNPACK +│ (\d+) of \1 operators", text)
    assert re.search(r"portable +│ none ", text)
    assert str(out) in text
    x = torch.randn(2, 3, 8, 8)
    exact = read_program(folder / "small.pt2").module()(x)
    (ran,) = load(out)(x)
    assert (ran - exact).abs().max() < 0.05 * exact.abs().max()


def test_report_and_options(run: Run, folder: Path, tmp_path: Path) -> None:
    code, text, _ = run(
        *("quantize", folder / "small.pt2", "--calibration", folder / "images.npz"),
        *("-o", tmp_path / "a.pte", "--report", "--per-tensor", "--limit", 3),
    )
    assert code == 0
    assert "3 batch(es), 1 more held out" in text
    assert "aten.conv2d.default" in text
    per_tensor = (tmp_path / "a.pte").stat().st_size
    run(
        *("quantize", folder / "small.pt2", "--calibration", folder / "images.npz"),
        *("-o", tmp_path / "b.pte"),
    )
    assert (tmp_path / "b.pte").stat().st_size != per_tensor


def test_dynamic_activations(run: Run, folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.pt"
    torch.save([{"x": torch.randn(6, 6), "mask": torch.ones(6, 4)}], data)
    code, text, err = run(
        *("quantize", folder / "masked.pt2", "--calibration", data),
        *("-o", tmp_path / "m.pte", "--dynamic"),
    )
    assert (code, err) == (0, "")
    assert float(re.search(r"(\d+\.\d) dB", text)[1]) > 25  # type: ignore[index]


def test_version_and_help(run: Run) -> None:
    assert run("--version")[:2] == (0, f"pt2q {__version__}\n")
    for args in (["--help"], ["quantize", "--help"]):
        code, text, _ = run(*args)
        assert (code, "quantize" in text) == (0, True)


def test_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pt2q", "--version"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"pt2q {__version__}\n", "")


# ------------------------------------------------------------------------------------- what fails


def test_a_bad_command_line(run: Run, folder: Path, tmp_path: Path) -> None:
    fails(run("quantize", folder / "small.pt2", "-o", "x.pte"), 2, "--calibration")
    fails(run("quantise"), 2, "quantise")
    model, data = folder / "small.pt2", folder / "images.npz"
    call = ("quantize", model, "--calibration", data, "-o", tmp_path / "x.pte")
    fails(run(*call, "--limit", 0), 2, "limit|range")
    fails(run(*call, "--backend", "abacus"), 1, r"unknown backend 'abacus'.*xnnpack")


def test_a_bad_model(run: Run, folder: Path, tmp_path: Path) -> None:
    def call(model: Path) -> tuple[int, str, str]:
        return run(
            *("quantize", model, "--calibration", folder / "images.npz"),
            *("-o", tmp_path / "x.pte"),
        )

    fails(call(tmp_path / "missing.pt2"), 1, r"missing.pt2: no such file")
    cut = tmp_path / "cut.pt2"
    whole = (folder / "small.pt2").read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    fails(call(cut), 1, r"cut.pt2: truncated")
    fails(call(folder / "images.npz"), 1, r"images.npz: torch.export.load failed")
    assert not (tmp_path / "x.pte").exists()


def test_an_output_that_cannot_be_written(run: Run, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    call = ("quantize", folder / "small.pt2", "--calibration", folder / "images.npz")
    fails(run(*call, "-o", tmp_path / "file" / "x.pte"), 1, "cannot write .*x.pte")
    fails(run(*call, "-o", tmp_path), 1, "cannot write .*folder")


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


# ------------------------------------------------------------------------------- reading the data


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


# ------------------------------------------------------------------------------------- comparing


def test_compare(run: Run, folder: Path, tmp_path: Path) -> None:
    from pt2q import convert_pt2e, debug, prepare_pt2e
    from pt2q.quantizers import XNNPACKQuantizer

    code, out, err = run(
        "compare", folder / "small.pt2", "--calibration", folder / "images.npz",
        "--json", tmp_path / "report.json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    program = read_program(folder / "small.pt2")
    batches = read_batches(folder / "images.npz", signature_of(program))
    prepared = prepare_pt2e(program, XNNPACKQuantizer())
    for batch in batches[:-1]:
        prepared(*batch)
    expected = debug.compare(program, convert_pt2e(prepared), batches[-1:])
    assert out == f"{expected}\n"
    assert (tmp_path / "report.json").read_text() == f"{expected.to_json()}\n"
    short = run(
        "compare", folder / "small.pt2", "--calibration", folder / "images.npz", "--worst", 2
    )
    assert short[:2] == (0, f"{expected.worst(2)}\n")


def test_compare_takes_constants_and_keywords(run: Run, folder: Path, tmp_path: Path) -> None:
    data = {"x": torch.randn(12, 6), "mask": torch.rand(12, 4)}
    torch.save(data, tmp_path / "data.pt")
    code, out, err = run(
        "compare", folder / "masked.pt2", "--calibration", tmp_path / "data.pt",
        "--backend", "onnxruntime",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "linear" in out and "outputs over 1 batch: " in out
    missing = folder / "none.pt2"
    fails(run("compare", missing, "--calibration", tmp_path / "data.pt"), 1, "no such file")
