"""Several processes calibrate as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from support.processes import start
from support.ranks import (
    COUNT,
    KINDS,
    Layers,
    batch_of,
    calibrate_in_groups,
    calibrate_together,
    converted_state,
    die_on_the_way,
    prepared,
    prepared_by,
    state_of,
    write_files,
)
from support.threads import one_thread

from pt2q import convert_pt2e, disable_fake_quant, prepare_qat_pt2e
from pt2q.distributed import Ranks, calibrate
from pt2q.errors import DataError, DistributedError, FlowError, MergeError
from pt2q.observers import FakeQuantize, MovingAverageMinMaxObserver
from pt2q.quantizers import XNNPACKQuantizer, get_symmetric_quantization_config


def alone() -> dict[str, Any]:
    """What a plain loop over the batches comes to."""
    module = prepared()
    with torch.no_grad():
        for index in range(COUNT):
            module(*batch_of(index))
    return converted_state(module)


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(v, other[k]) if isinstance(v, torch.Tensor) else v == other[k]
        for k, v in one.items()
    )


def test_one_process_is_a_loop_over_the_batches() -> None:
    module = prepared()
    calibrate(module, (batch_of(i) for i in range(COUNT)))
    assert same(converted_state(module), alone())
    with pytest.raises(FlowError, match="have seen data already"):
        calibrate(module, [batch_of(0)])


@pytest.mark.parametrize(
    "batch", [batch_of(1), list(batch_of(1)), batch_of(1)[0], {"x": batch_of(1)[0]}]
)
def test_batches_as_users_have_them(batch: Any) -> None:
    module, plain = prepared(), prepared()
    calibrate(module, [batch])
    plain(*batch_of(1))
    assert same(converted_state(module), converted_state(plain))


def looped(kind: str, stem: Path) -> dict[str, Any]:
    """What a plain loop comes to with one kind of observer, and its files."""
    module = prepared_by(kind)
    with one_thread(), torch.no_grad():
        for index in range(COUNT):
            module(*batch_of(index))
        converted = convert_pt2e(module)
        write_files(converted, *batch_of(0), str(stem))
    return state_of(converted)


def assert_same_files(folder: Path, stem: Path, sizes: Sequence[int], kind: str) -> None:
    for suffix in (".pte", ".onnx"):
        expected = stem.with_suffix(suffix).read_bytes()
        for size in sizes:
            found = (folder / f"{kind}-{size}{suffix}").read_bytes()
            assert found == expected, (kind, size, suffix)


@pytest.mark.slow
def test_any_number_of_processes_writes_the_same_with_every_observer(tmp_path: Path) -> None:
    """A model in memory, a `.pte` and an ONNX file, byte for byte those of a plain loop."""
    mp.spawn(calibrate_in_groups, (str(tmp_path),), nprocs=4)
    made = {}
    assert len(list(tmp_path.glob("*.pt"))) == 10 * len(KINDS)
    for kind in KINDS:
        made[kind] = looped(kind, tmp_path / "loop")
        assert_same_files(tmp_path, tmp_path / "loop", (1, 2, 3, 4), kind)
        for path in tmp_path.glob(f"{kind}-?-?.pt"):
            assert same(torch.load(path), made[kind]), path
    assert same(made["own"], made["extremes"])
    for kind in ("histogram", "symmetric histogram", "averages", "fixed"):
        assert not same(made[kind], made["extremes"])


def test_two_processes_write_what_a_loop_writes(tmp_path: Path) -> None:
    """This process is the first of them, so that only one more has to be started."""
    kinds = ("histogram",)
    other = start(calibrate_together, 1, str(tmp_path), 2, kinds)
    with one_thread():
        calibrate_together(0, str(tmp_path), 2, kinds)
    assert other.wait().returncode == 0
    for kind in kinds:
        expected = looped(kind, tmp_path / "loop")
        assert_same_files(tmp_path, tmp_path / "loop", (2,), kind)
        for rank in (0, 1):
            assert same(torch.load(tmp_path / f"{kind}-2-{rank}.pt"), expected), (kind, rank)


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    """And the process that is left says, and soon, that the other is gone."""
    context = mp.spawn(die_on_the_way, (str(tmp_path), 9, True), nprocs=2, join=False)
    with pytest.raises(Exception, match="exit code 9"):
        while not context.join(timeout=60):
            pass
    said = tmp_path / "said-0.pt"
    assert not said.exists() or "DistributedError" in torch.load(said)
    assert sorted(p.name for p in (tmp_path / "kept").iterdir()) == [
        "calibration-0-of-2.pt",
        "calibration-1-of-2.pt",
    ]
    mp.spawn(die_on_the_way, (str(tmp_path), COUNT + 1, True), nprocs=2)
    for rank in (0, 1):
        assert same(torch.load(tmp_path / f"resumed-{rank}.pt"), alone())


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    module = prepared()
    calibrate(module, [batch_of(i) for i in range(5)], resume=tmp_path)
    again = prepared()
    calibrate(again, [batch_of(i) for i in range(5)], resume=tmp_path)
    assert same(converted_state(again), converted_state(module))
    for others in ([batch_of(0)], [batch_of(i) * 100 for i in range(5)]):
        with pytest.raises(DistributedError, match="other data"):
            calibrate(prepared(), others, resume=tmp_path)
    other = prepared()
    with torch.no_grad():
        next(other.parameters()).mul_(2)
    with pytest.raises(DistributedError, match="another model"):
        calibrate(other, [batch_of(i) for i in range(5)], resume=tmp_path)
    (tmp_path / "calibration-0-of-1.pt").rename(tmp_path / "calibration-0-of-3.pt")
    with pytest.raises(DistributedError, match="another number of processes"):
        calibrate(prepared(), [batch_of(0)], resume=tmp_path)


def test_what_fails_in_one_process_is_said_with_its_place() -> None:
    """Two processes, as far as the messages go."""

    class Pair(Ranks):
        def gather(self, value: Any) -> list[Any]:
            return [value, "ValueError: no such file"]

    with pytest.raises(DistributedError, match="process 1 of 2 failed: ValueError: no such file"):
        Pair(0, 2).agree(None)


def test_a_batch_is_a_call_of_the_model() -> None:
    for wrong, words in (
        ({"y": batch_of(0)[0]}, "takes"),
        ((), "0 argument"),
        ("text", "found str"),
    ):
        with pytest.raises(DataError, match=words):
            calibrate(prepared(), [wrong])


def test_a_source_of_data_that_fails_is_said_to_all() -> None:
    """What is raised while reading goes the way of what is raised while running."""
    told: list[Any] = []

    class Watched(Ranks):
        def agree(self, failure: BaseException | None) -> None:
            told.append(failure)
            super().agree(failure)

    def source() -> Any:
        yield batch_of(0)
        raise OSError("no such file")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ranks, "of", staticmethod(lambda group=None: Watched()))
        with pytest.raises(OSError, match="no such file"):
            calibrate(prepared(), source())
    assert isinstance(told[-1], OSError)


def observed(ranks: Ranks | None, make: Any) -> dict[str, Any]:
    """What fake quantizers come to that only watch: in a plain loop where there are no ranks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        exported = torch.export.export(Layers().eval(), batch_of(0))
    module = prepare_qat_pt2e(exported, make()).eval().apply(disable_fake_quant)
    batches = [batch_of(i) for i in range(COUNT)]
    if ranks is None:
        for batch in batches:
            module(*batch)
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Ranks, "of", staticmethod(lambda group=None: ranks))
            calibrate(module, batches)
    return converted_state(module)


def fused() -> XNNPACKQuantizer:
    return XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_qat=True))


def averaged() -> XNNPACKQuantizer:
    config = get_symmetric_quantization_config(is_qat=True)
    assert config.input_activation is not None
    plain = FakeQuantize.with_args(observer=MovingAverageMinMaxObserver, averaging_constant=0.1)
    activation = replace(config.input_activation, observer_or_fake_quant_ctr=plain)
    config = replace(config, input_activation=activation, output_activation=activation)
    return XNNPACKQuantizer().set_global(config)


@pytest.mark.parametrize("make", [fused, averaged])
def test_fake_quantizers_that_only_watch(make: Any) -> None:
    """Two that each see every second batch, one after the other: the first waits for no other."""
    plain = observed(None, make)
    assert same(observed(Ranks(), make), plain)

    class Half(Ranks):
        def gather(self, value: Any) -> list[Any]:
            said.setdefault(self.rank, []).append(value)
            place = len(said[self.rank]) - 1
            other = heard[place] if place < len(heard) else value
            return [value, other] if self.rank == 0 else [other, value]

    said: dict[int, list[Any]] = {}
    heard: list[Any] = []
    observed(Half(0, 2), make)
    heard = said.pop(0)
    assert same(observed(Half(1, 2), make), plain)


def test_fake_quantizers_that_round_are_not_shared_out() -> None:
    exported = torch.export.export(Layers().eval(), batch_of(0))
    module = prepare_qat_pt2e(exported, fused()).eval()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ranks, "of", staticmethod(lambda group=None: Ranks(0, 2)))
        patch.setattr(Ranks, "gather", lambda self, value: [value, None])
        with pytest.raises(MergeError, match="while it rounds"):
            calibrate(module, [batch_of(0)])
