"""Models that do not fit: the same bits, with little more than a layer in memory."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from support.big_decoder import quantized, save_decoder, tokens
from support.memory_limit import limited_group
from support.qat_quantizer import QATQuantizer
from support.thread_ranks import in_threads

from pt2q import convert_pt2e, prepare_pt2e, quantize_pt2e
from pt2q.algorithms import GPTQ
from pt2q.algorithms.engine import Walk
from pt2q.algorithms.kept_pieces import Pieces
from pt2q.algorithms.low_memory import _Watching, calibrate_in_pieces
from pt2q.distributed import Ranks
from pt2q.errors import DataError, DistributedError, SpecError
from pt2q.ir.mapped_program import mapped_program
from pt2q.ir.module import QuantGraphModule
from pt2q.ir.storage import low_memory, release, spilled
from pt2q.quantizers import XNNPACKQuantizer

TESTS = Path(__file__).parents[1]
QUICK = GPTQ(search_scales=False, sweeps=0)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("decoder") / "decoder.pt2"
    save_decoder(path, width=128, depth=1)
    return path


def same(one: Any, other: Any) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return (
        one.code == other.code
        and first.keys() == second.keys()
        and all(torch.equal(value, second[name]) for name, value in first.items())
    )


@pytest.mark.parametrize("algorithms", [(), (QUICK,)], ids=["plain", "gptq"])
def test_the_same_bits(saved: Path, tmp_path: Path, algorithms: Any) -> None:
    expected = quantized(saved, algorithms=algorithms)
    found = quantized(saved, algorithms=algorithms, low_memory=tmp_path)
    assert same(found, expected)
    assert not list(tmp_path.iterdir())  # what is mapped needs no name
    assert torch.equal(found(*tokens(9)), expected(*tokens(9)))
    program = torch.export.load(saved)
    assert same(quantized(program, algorithms=algorithms, low_memory=True), expected)


def test_a_mapped_program_is_the_program(saved: Path) -> None:
    mapped, plain = mapped_program(saved), torch.export.load(saved)
    assert mapped.state_dict.keys() == plain.state_dict.keys()
    for name, value in plain.state_dict.items():
        assert torch.equal(mapped.state_dict[name], value)
        assert mapped.state_dict[name].requires_grad == value.requires_grad
    assert torch.equal(mapped.module()(*tokens(1)), plain.module()(*tokens(1)))


def test_what_is_spilled_can_be_written() -> None:
    tensor = torch.randn(300, 100)
    assert spilled(tensor) is tensor
    with low_memory():
        kept, small = spilled(tensor), spilled(tensor[:1])
        release()
    assert kept.data_ptr() != tensor.data_ptr() and torch.equal(kept, tensor)
    assert small.data_ptr() == tensor.data_ptr()
    kept.mul_(2)
    assert torch.equal(kept, tensor * 2)


def test_a_batch_that_the_model_does_not_take_is_named(saved: Path) -> None:
    wrong = [tokens(0), (torch.full((1, 8), 99),)]
    with pytest.raises(DataError, match=r"fails on batch 2: .*index out of range"):
        quantize_pt2e(saved, XNNPACKQuantizer(), wrong, low_memory=True)


def test_what_rounds_while_it_watches_is_refused() -> None:
    program = torch.export.export(torch.nn.Linear(4, 4).eval(), (torch.randn(2, 4),))
    with pytest.raises(SpecError, match="rounds while it watches"):
        quantize_pt2e(program, QATQuantizer(), [torch.randn(2, 4)], low_memory=True)


def test_what_is_kept_of_other_weights_is_refused(tmp_path: Path) -> None:
    batches = [torch.randn(2, 4) for _ in range(4)]
    models = [torch.export.export(torch.nn.Linear(4, 4).eval(), (batches[0],)) for _ in range(2)]
    kept: dict[str, Any] = {"low_memory": True, "resume": tmp_path}
    quantize_pt2e(models[0], XNNPACKQuantizer(), batches, **kept)
    with pytest.raises(DistributedError, match="another model or other data"):
        quantize_pt2e(models[1], XNNPACKQuantizer(), batches, **kept)
    quantize_pt2e(models[0], XNNPACKQuantizer(), batches, **kept)


class Stopped(BaseException):
    """As Ctrl-C ends a run."""


def test_a_stopped_run_goes_on_from_the_piece(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle of a piece, twice; what was seen before is not run again."""
    options: dict[str, Any] = {"low_memory": True}
    expected = quantized(saved, **options)
    ran = watched_calls(monkeypatch)
    quantized(saved, **options, resume=tmp_path / "unbroken")
    whole = ran.pop()
    for stop in (whole // 3, whole // 2):
        ran.append(0)
        ran.stop = stop
        with pytest.raises(Stopped):
            quantized(saved, **options, resume=tmp_path / "kept")
    ran.append(0)
    ran.stop = None
    found = quantized(saved, **options, resume=tmp_path / "kept")
    assert ran[-1] < whole // 2
    assert same(found, expected)
    ran.append(0)
    assert same(quantized(saved, **options, resume=tmp_path / "kept"), expected)
    assert ran[-1] == 0  # all of it is there
    assert [p.name for p in (tmp_path / "kept" / "pieces-0-of-1").iterdir()] == ["index"]


def test_processes_that_were_stopped_at_different_pieces_go_on(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second is stopped when the first has kept a piece that it has not kept itself."""
    expected = convert_pt2e(watched_in_pieces(saved, 1)[0])
    save, first = Pieces.save, Event()

    def stopping(self: Pieces, walk: Walk, run: str) -> None:
        if walk.position <= 30:
            save(self, walk, run)
        elif self.ranks.rank == 0:
            save(self, walk, run)
            first.set()
        else:
            first.wait(60)
            raise Stopped

    with monkeypatch.context() as patch, pytest.raises((Stopped, DataError)):
        patch.setattr(Pieces, "save", stopping)
        watched_in_pieces(saved, 2, tmp_path)
    kept = [torch.load(tmp_path / f"pieces-{rank}-of-2" / "index") for rank in (0, 1)]
    assert kept[0]["position"] > kept[1]["position"] > 0
    for found in watched_in_pieces(saved, 2, tmp_path):
        assert same(convert_pt2e(found), expected)


def watched_in_pieces(saved: Path, size: int, folder: Path | None = None) -> list[QuantGraphModule]:
    """What each of several processes, threads here, makes of the calibration data."""
    program = torch.export.load(saved)
    made = [prepare_pt2e(program, XNNPACKQuantizer()) for _ in range(size)]

    def work(ranks: Ranks) -> None:
        with low_memory():
            data = [tokens(i) for i in range(4)]
            calibrate_in_pieces(made[ranks.rank], data, ranks, resume=folder)

    in_threads(size, work)
    return made


class Ran(list[int]):
    """How many values observers were shown in each run, and at which a run is stopped."""

    stop: int | None = None


def watched_calls(monkeypatch: pytest.MonkeyPatch) -> Ran:
    ran = Ran([0])
    observed = _Watching.observed

    def counting(self: Any, observer: Any, value: Any, **more: Any) -> Any:
        ran[-1] += 1
        if ran[-1] == ran.stop:
            raise Stopped
        return observed(self, observer, value, **more)

    monkeypatch.setattr(_Watching, "observed", counting)
    return ran


def test_what_is_kept_of_another_run_is_refused(saved: Path, tmp_path: Path) -> None:
    quantized(saved, low_memory=True, resume=tmp_path)
    others = [tokens(i) for i in range(3)]
    with pytest.raises(DistributedError, match="another model or other data"):
        quantize_pt2e(saved, XNNPACKQuantizer(), others, low_memory=True, resume=tmp_path)
    (tmp_path / "pieces-0-of-1").rename(tmp_path / "pieces-0-of-2")
    with pytest.raises(DistributedError, match="another number of processes than 1"):
        quantized(saved, low_memory=True, resume=tmp_path)


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(saved: Path, tmp_path: Path) -> None:
    """Killed while a piece is run, by two processes one after the other."""
    expected = quantized(saved, low_memory=True)
    for values in (20, 30):
        done = in_own_process("killed", saved, tmp_path / "kept", values)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert (tmp_path / "kept" / "pieces-0-of-1" / "index").exists()
    assert same(quantized(saved, low_memory=True, resume=tmp_path / "kept"), expected)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel for the peak of memory")
def test_a_third_of_the_model_is_enough(saved: Path, tmp_path: Path) -> None:
    """The peak above what the process has anyway, for 200 MB of weights in layers of 17 MB."""
    big = tmp_path / "big.pt2"
    save_decoder(big, width=1024, depth=4)
    size = big.stat().st_size
    grown = {}
    for kind in ("plain", "low"):
        done = in_own_process("grown", saved, big, kind)
        assert done.returncode == 0, done.stderr
        grown[kind] = json.loads(done.stdout.splitlines()[-1])["grown"]
    assert grown["low"] < size / 3
    assert grown["plain"] > size


@pytest.mark.slow
def test_a_model_three_times_the_memory_that_is_allowed(saved: Path, tmp_path: Path) -> None:
    """The kernel ends what takes more: the plain way is killed, the other comes to its end."""
    big = tmp_path / "big.pt2"
    save_decoder(big, width=1024, depth=4)
    ends = {}
    with limited_group(big.stat().st_size // 3) as group:
        if group is None:
            pytest.skip("this user may make no group of processes with a limit of memory")
        for kind in ("plain", "low"):
            ends[kind] = in_own_process("grown", saved, big, kind, str(group)).returncode
    assert ends == {"plain": -signal.SIGKILL, "low": 0}


def in_own_process(*arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "support.big_decoder", *map(str, arguments)]
    return subprocess.run(command, cwd=TESTS, capture_output=True, text=True, timeout=600)
