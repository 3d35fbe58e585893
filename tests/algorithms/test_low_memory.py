"""Models that do not fit: the same bits, with little more than a layer in memory."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.big_decoder import quantized, save_decoder, tokens
from support.memory_limit import limited_group
from support.qat_quantizer import QATQuantizer

from pt2q import quantize_pt2e
from pt2q.algorithms import GPTQ
from pt2q.errors import DataError, SpecError
from pt2q.ir.mapped_program import mapped_program
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


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel for the peak of memory")
def test_a_third_of_the_model_is_enough(saved: Path, tmp_path: Path) -> None:
    """The peak above what the process has anyway, for 200 MB of weights in layers of 17 MB."""
    big = tmp_path / "big.pt2"
    save_decoder(big, width=1024, depth=4)
    size = big.stat().st_size
    grown = {}
    for kind in ("plain", "low"):
        done = in_own_process(saved, big, kind)
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
            ends[kind] = in_own_process(saved, big, kind, str(group)).returncode
    assert ends == {"plain": -signal.SIGKILL, "low": 0}


def in_own_process(*arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "support.big_decoder", *map(str, arguments)]
    return subprocess.run(command, cwd=TESTS, capture_output=True, text=True, timeout=600)
