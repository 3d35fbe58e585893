"""The demo's claims, measured as the demo measures them, but for the times."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from io import StringIO
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from rich.console import Console

from pt2q.demo.digits import Digits, load_digits, warp
from pt2q.demo.net import CHECKPOINT, DigitNet, load_checkpoint, save_checkpoint
from pt2q.demo.run import DemoResult, run_demo, table
from pt2q.demo.train import accuracy, jitter, train
from pt2q.errors import DataError

T = TypeVar("T")


def silent(items: Sequence[T], title: str) -> Iterable[T]:
    return items


@pytest.fixture(scope="module")
def digits() -> Digits:
    return load_digits()


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    return run_demo(tmp_path_factory.mktemp("demo"), silent)


def test_the_claims_hold(result: DemoResult) -> None:
    floating, quantized = result.floating, result.quantized
    assert result.held_out == 797
    assert floating.accuracy >= 98.5
    assert abs(quantized.accuracy - floating.accuracy) <= 0.5
    assert floating.size > 3.3 * quantized.size
    assert floating.size == floating.path.stat().st_size
    assert min(floating.latency, quantized.latency) > 0


def test_the_runtime_is_as_accurate_as_the_checkpoint(result: DemoResult, digits: Digits) -> None:
    eager = accuracy(load_checkpoint(), digits.held_out, digits.held_out_labels)
    assert result.floating.accuracy == pytest.approx(eager, abs=0.13)  # one digit in 797


def test_the_table_says_it_all(result: DemoResult) -> None:
    console = Console(width=200, file=StringIO())
    console.print(table(result))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for part in (
        f"{result.floating.accuracy:.2f} %",
        f"{result.quantized.accuracy:.2f} %",
        "points",
        "x smaller",
        "x faster",
        str(result.quantized.path),
    ):
        assert part in text


def test_everything_is_delegated(result: DemoResult) -> None:
    assert result.floating.delegation.portable == ()
    assert result.quantized.delegation.portable == ()


def test_the_split_is_fixed(digits: Digits) -> None:
    assert (len(digits.train), len(digits.held_out)) == (1000, 797)
    again = load_digits()
    assert torch.equal(digits.held_out, again.held_out)
    assert digits.train.min() >= -1 and digits.train.max() <= 1
    assert digits.train.shape[1:] == (1, 32, 32)


def test_an_upright_warp_keeps_the_corners_of_an_image_apart() -> None:
    image = torch.zeros(1, 1, 8, 8)
    image[0, 0, 0, 7] = 1.0
    big = warp(image, torch.eye(2, 3)[None])
    assert big[0, 0, :2, -2:].min() == 1.0
    assert big[0, 0, 8:].abs().max() == 0.0


def test_training_repeats_and_learns(digits: Digits) -> None:
    few = Digits(digits.train[:64], digits.train_labels[:64], digits.train, digits.train_labels)
    first, second = (train(few, 2, DigitNet, seed=3) for _ in range(2))
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    images = jitter(digits.train[:16], torch.Generator().manual_seed(0))
    assert images.shape == (16, 1, 32, 32)
    assert torch.isfinite(images).all()


def test_the_checkpoint_is_small_and_read_back_alike(tmp_path: Path) -> None:
    assert CHECKPOINT.stat().st_size < 3e6
    net = load_checkpoint()
    save_checkpoint(net, tmp_path / "again.pt")
    again = load_checkpoint(tmp_path / "again.pt")
    x = torch.randn(2, 1, 32, 32)
    assert torch.equal(net(x), again(x))
    assert not net.training


def test_a_checkpoint_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    torch.save({"weight": torch.zeros(2)}, path)
    for bad in (path, tmp_path / "missing.pt"):
        with pytest.raises(DataError, match=r"python -m pt2q.demo.train"):
            load_checkpoint(bad)
    assert DigitNet().training
