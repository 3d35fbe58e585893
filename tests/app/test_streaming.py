"""Calibration data is read when it is needed, whatever it comes from, and no further."""

from __future__ import annotations

import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.command_line import Run, fails

from pt2q import prepare_pt2e
from pt2q.app.conversion import calls_of
from pt2q.app.data.holding_out import parted, read_data
from pt2q.app.data.reading import read_batches
from pt2q.app.data.source import Batches
from pt2q.app.program_file import read_program
from pt2q.deploy import executorch
from pt2q.deploy.signature import Batch, Signature, signature_of
from pt2q.distributed import calibrate
from pt2q.errors import DataError
from pt2q.flow import DataDigest
from pt2q.quantizers import XNNPACKQuantizer

X = torch.arange(13 * 6, dtype=torch.float32).reshape(13, 6)
MASK = torch.arange(13 * 4, dtype=torch.float32).reshape(13, 4)

FUNCTIONS = """
import numpy as np
import torch

X = torch.arange(13 * 6, dtype=torch.float32).reshape(13, 6)
MASK = torch.arange(13 * 4, dtype=torch.float32).reshape(13, 4)
ROWS = [(X[i : i + 3], MASK[i : i + 3]) for i in range(0, 12, 3)]

def whole():
    return X, MASK

def several():
    return ROWS

def generated():
    for x, mask in ROWS:
        yield {"mask": mask.numpy(), "x": x.numpy()}

def loaded():
    pairs = torch.utils.data.TensorDataset(X, MASK)
    return torch.utils.data.DataLoader(pairs, batch_size=6)

def drawn():
    for _ in range(4):
        yield torch.randn(3, 6), torch.rand(3, 4)

def same_memory():
    x, mask = torch.empty(3, 6), torch.empty(3, 4)
    for one, other in ROWS:
        x.copy_(one)
        mask.copy_(other)
        yield x, mask

def counted():
    for index in range(10**9):
        assert index < 8, "read too far"
        yield X[:3], MASK[:3]

def fewer(times=[]):
    times.append(0)
    return iter(ROWS[: 5 - len(times)])

def nothing():
    return None

def word():
    return "x"

def raises():
    yield ROWS[0]
    raise KeyError("lost")

def leaves():
    raise SystemExit(3)

def labels():
    yield {"x": X[:3], "mask": MASK[:3], "label": MASK[:3]}

def strings():
    yield "a", "b"

def none():
    return []

def nan():
    yield ROWS[0]
    yield X[:3] * float("nan"), MASK[:3]
"""


@pytest.fixture(scope="module")
def signature(folder: Path) -> Signature:
    return signature_of(read_program(folder / "masked.pt2"))


@pytest.fixture(scope="module")
def functions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("functions") / "data.py"
    path.write_text(FUNCTIONS)
    return path


def _same(batches: Any, numbers: range = range(4)) -> None:
    found = list(batches)
    assert len(found) == len(numbers)
    for number, (x, mask) in zip(numbers, found, strict=True):
        assert torch.equal(x, X[number * 3 : number * 3 + 3])
        assert torch.equal(mask, MASK[number * 3 : number * 3 + 3])


def _written(folder: Path, form: str) -> Path:
    x, mask = X.numpy(), MASK.numpy()
    path = folder / f"{form}.{'pt' if form.startswith('torch') else 'npz'}"
    if form == "numpy":
        np.savez(path, mask=mask, x=x)
    elif form == "compressed":
        np.savez_compressed(path, mask=mask, x=x)
    elif form == "columns":
        np.savez(path, mask=np.asfortranarray(mask), x=np.asfortranarray(x))
    elif form == "packed columns":
        np.savez_compressed(path, mask=np.asfortranarray(mask), x=np.asfortranarray(x))
    elif form == "other order of bytes":
        np.savez(path, mask=mask.astype(">f4"), x=x)
    elif form == "torch":
        torch.save({"mask": MASK, "x": X}, path)
    elif form == "torch list":
        torch.save([(X[:6], MASK[:6]), {"x": X[6:], "mask": MASK[6:]}], path)
    else:
        torch.save((X, MASK), path, _use_new_zipfile_serialization=False)
    return path


FORMS = ("numpy", "compressed", "columns", "packed columns", "other order of bytes", "torch")


@pytest.mark.parametrize("form", [*FORMS, "torch list", "torch of old"])
def test_any_part_of_a_file(tmp_path: Path, signature: Signature, form: str) -> None:
    path = _written(tmp_path, form)
    batches = read_batches(path, signature)
    assert len(batches) == 4
    _same(batches)
    _same(batches[1:3], range(1, 3))
    _same(batches[::2][1:], range(2, 3))
    _same([batches[-1]], range(3, 4))
    _same(read_batches(path, signature, limit=2), range(2))
    with pytest.raises(IndexError):
        batches[4]


def test_a_folder_is_read_file_by_file(tmp_path: Path, signature: Signature) -> None:
    torch.save((X[:4], MASK[:4]), tmp_path / "0.pt")  # one row of it fills no batch
    np.savez(tmp_path / "1.npz", x=X[3:].numpy(), mask=MASK[3:].numpy())
    _same(read_batches(tmp_path, signature))
    _same(read_batches(tmp_path, signature)[2:], range(2, 4))
    (tmp_path / "2.npz").write_bytes(b"broken")
    _same(read_batches(tmp_path, signature, limit=3), range(3))
    with pytest.raises(DataError, match=r"2\.npz: not readable"):
        read_batches(tmp_path, signature)


@pytest.mark.parametrize("name", ["whole", "several", "generated", "loaded", "same_memory"])
def test_a_function(functions: Path, signature: Signature, name: str) -> None:
    batches = read_batches(f"{functions}:{name}", signature)
    _same(batches)
    _same(batches)
    _same(batches[2:3], range(2, 3))


def test_a_function_draws_the_same_each_time(functions: Path, signature: Signature) -> None:
    batches = read_batches(f"{functions}:drawn", signature)
    torch.manual_seed(5)
    one = list(batches)
    after = torch.rand(1)
    other = list(batches[2:])
    assert all(map(torch.equal, one[3], other[1]))
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))


def test_a_limit_stops_reading(functions: Path, folder: Path) -> None:
    program = read_program(folder / "masked.pt2")
    given = Path(f"{functions}:counted")
    data = read_data(program, given, limit=4)
    assert (len(data.calibration), len(data.held_out)) == (4, 1)
    assert len(list(data.calibration)) == 4
    with pytest.raises(DataError, match=r"element 9: AssertionError.*read too far"):
        read_data(program, given)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "expected several calls of the model to go through, got NoneType"),
        ("word", "got str"),
        ("raises", r"data\.py:raises: it fails, element 2: KeyError"),
        ("leaves", r"it fails, calling it: SystemExit"),
        ("labels", r"element 1: the model's inputs are \['x', 'mask'\], got .*label"),
        ("strings", "element 1: expected tensors, got str"),
        ("none", "empty, not one batch of 3"),
        ("nan", "element 2: NaN or infinity in input x"),
        ("absent", "has no function 'absent'"),
        ("", "expected FILE.py:FUNCTION"),
    ],
)
def test_a_function_that_is_wrong(
    run: Run, folder: Path, functions: Path, tmp_path: Path, name: str, message: str
) -> None:
    call = ("quantize", folder / "masked.pt2", "--calibration", f"{functions}:{name}")
    fails(run(*call, "-o", tmp_path / "x.pte"), 1, message)
    assert not list(tmp_path.iterdir())


def test_a_function_that_gives_less_the_second_time(functions: Path, signature: Signature) -> None:
    batches = read_batches(f"{functions}:fewer", signature)
    with pytest.raises(DataError, match=r"gave 4 call\(s\) at first, and .* fewer"):
        list(batches)


def test_what_is_held_out_is_drawn_from_everywhere(tmp_path: Path, signature: Signature) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((120, 6), "f4"), mask=np.zeros((120, 4), "f4"))
    batches = read_batches(tmp_path / "x.npz", signature)
    seen = set()
    for seed in range(5):
        data = parted(batches, None, seed, in_a_row=False)
        assert sorted({*data.calibration.numbers, *data.held_out.numbers}) == list(range(40))
        assert [number // 10 for number in data.held_out.numbers] == [0, 1, 2, 3]
        assert data.how == f"drawn by seed {seed}"
        seen.add(tuple(data.held_out.numbers))
    assert len(seen) == 5
    # On every machine, in every process: what is reported was measured on these.
    assert list(parted(batches, None, 0, in_a_row=False).held_out.numbers) == [6, 10, 22, 30]
    last = parted(batches, 10, 0, in_a_row=True)
    assert list(last.held_out.numbers) == [39] and list(last.calibration.numbers) == [*range(10)]
    measured = data.to_measure(6)
    assert list(measured.numbers) == sorted(
        {*data.held_out.numbers, *data.calibration.numbers[-2:]}
    )
    assert len(data.to_measure(3)) == 3


def _in_one_place(batches: list[Batch]) -> Iterator[Batch]:
    """Each in the memory of the one before it, as some loaders give them."""
    place = torch.empty_like(batches[0][0])
    for (x,) in batches:
        yield (place.copy_(x),)


def test_any_iterable_calibrates_to_the_same(folder: Path) -> None:
    program = read_program(folder / "small.pt2")
    batches = read_batches(folder / "images.npz", signature_of(program))
    plain = [tuple(batch) for batch in batches]
    calls = calls_of(program, batches)
    assert torch.equal(calls[2][0], plain[2][0]) and len(calls[3:]) == 7
    loader = torch.utils.data.DataLoader(torch.cat([b[0] for b in plain]), batch_size=2)  # type: ignore[arg-type]
    states = []
    for given in (plain, batches, calls, iter(plain), loader, deque(plain), _in_one_place(plain)):
        prepared = prepare_pt2e(program, XNNPACKQuantizer())
        calibrate(prepared, given)
        states.append(str(prepared.state_dict()))
    assert len(set(states)) == 1


def test_batches_are_a_sequence(signature: Signature, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=X.numpy(), mask=MASK.numpy())
    batches = read_batches(tmp_path / "x.npz", signature)
    assert isinstance(batches, Batches)
    found: list[Batch] = list(reversed(batches))
    _same(found[::-1])


def test_a_folder_of_datasets(run: Run, folder: Path, tmp_path: Path, signature: Signature) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {"label": list("abcdefghijklm"), "x": X.tolist(), "mask": MASK.tolist()}
    made = datasets.Dataset.from_dict(rows)
    made.save_to_disk(tmp_path / "rows")
    _same(read_batches(tmp_path / "rows", signature))
    _same(read_batches(tmp_path / "rows", signature)[1:], range(1, 4))
    images = {"x": X[:12].reshape(4, 3, 6).tolist(), "mask": MASK[:12].reshape(4, 3, 4).tolist()}
    shapes = {"x": datasets.Array2D((3, 6), "float32"), "mask": datasets.Array2D((3, 4), "float64")}
    calls = datasets.Dataset.from_dict(images, datasets.Features(shapes))
    calls.save_to_disk(tmp_path / "calls")
    _same(read_batches(tmp_path / "calls", signature))
    made.select([2, 1, 0, 5, 4, 3]).save_to_disk(tmp_path / "chosen")
    ((first, _), _) = read_batches(tmp_path / "chosen", signature)
    assert torch.equal(first, X[:3].flip(0))
    datasets.DatasetDict(train=made).save_to_disk(tmp_path / "splits")
    made.remove_columns("mask").save_to_disk(tmp_path / "short")
    ragged = datasets.Dataset.from_dict({**rows, "x": [[1.0] * (i % 2 + 5) for i in range(13)]})
    ragged.save_to_disk(tmp_path / "ragged")
    made.map(lambda row: {"x": "text"}, remove_columns="x").save_to_disk(tmp_path / "text")
    for name, message in (
        ("splits", r"expected one split, found \['train'\]: give .*splits/NAME"),
        ("short", r"inputs are \['x', 'mask'\], the columns \['label', 'x'\]: name"),
        ("ragged", r"row 0: column 'x': .*rows differ in length: \[5, 6\]"),
        ("text", "row 0: column 'x': "),
    ):
        call = ("quantize", folder / "masked.pt2", "--calibration", tmp_path / name)
        fails(run(*call, "-o", tmp_path / "x.pte"), 1, message)


MEMORY = """
import resource, sys
COUNT = 96
from pt2q.app.data.holding_out import read_data
from pt2q.app.program_file import read_program
from pt2q.app.conversion import calibrated, untracked
from pt2q.app.data.checks import Look
from pt2q.quantizers import XNNPACKQuantizer
from pathlib import Path

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

def run(data, limit=None):
    data = read_data(program, Path(data), limit=limit)
    look = Look()
    calibrated(program, XNNPACKQuantizer(), data.calibration, untracked, look=look)
    assert look.batches == len(data.calibration) == (limit or COUNT - COUNT // 10)

program = read_program(sys.argv[1])
for data in sys.argv[2:]:
    run(data, 4)
before = peak()
for data in sys.argv[2:]:
    run(data)
    print(peak() - before)
"""
YIELDS = """
import torch

def batches():
    for _ in range(96):
        yield torch.rand(64, 4096)
"""


def test_memory_does_not_grow_with_the_data(tmp_path: Path) -> None:
    """96 MB of each form take less than a third of that more than four batches do."""
    model = torch.nn.Linear(4096, 2).eval()
    torch.export.save(torch.export.export(model, (torch.rand(64, 4096),)), tmp_path / "m.pt2")
    (tmp_path / "f.py").write_text(YIELDS)
    values = torch.rand(96, 64, 4096)
    np.savez(tmp_path / "x.npz", values.reshape(-1, 4096).numpy())
    torch.save(list(values), tmp_path / "x.pt")
    given = [tmp_path / "x.npz", tmp_path / "x.pt", f"{tmp_path}/f.py:batches"]
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, *map(str, [tmp_path / "m.pt2", *given])],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    grown = [int(line) for line in done.stdout.splitlines()]
    assert len(grown) == 3 and max(grown) < 32, grown


def test_a_stream_is_gone_through_as_often_as_it_is_needed(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    log, path = tmp_path / "log", tmp_path / "told.py"
    path.write_text(
        "import torch\n"
        "def told():\n"
        f"    print(file=open({str(log)!r}, 'a'))\n"
        "    yield from (torch.randn(2, 3, 8, 8) for _ in range(20))\n"
    )
    call = ("quantize", folder / "small.pt2", "--calibration", f"{path}:told")
    assert run(*call, "-o", tmp_path / "m.pte")[0] == 0
    # Counted; what is held out; calibrated on; the first call as the example.
    assert len(log.read_text()) <= 5
    found = executorch.load(tmp_path / "m.pte").provenance
    read = read_data(read_program(folder / "small.pt2"), Path(f"{path}:told"))
    assert found is not None
    assert found["calibration"]["sha256"] == DataDigest.of(read.calibration).sha256
    assert found["calibration"]["batches"] == 18
