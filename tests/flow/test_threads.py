"""Threads that run one prepared model: what is observed is what one thread observes."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pt2q import convert_pt2e, prepare_pt2e
from pt2q.observers import HistogramObserver, MinMaxObserver
from pt2q.observers.base.one_at_a_time import OneAtATime
from pt2q.quantizers import XNNPACKQuantizer

THREADS, CALLS = 4, 160

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture(autouse=True)
def _switching_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def batches() -> list[Tensor]:
    """Each is counted whole, so that the order of calls makes no difference."""
    seeded = torch.Generator().manual_seed(0)
    return [torch.randn(1, 3, 24, 24, generator=seeded) * (1 + i % 7) for i in range(CALLS)]


def observed(prepare: Any, threads: int) -> dict[str, Tensor]:
    def call(batch: Tensor) -> None:
        with torch.no_grad():
            model(batch)

    model = prepare()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(call, batches()))
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("kind", [HistogramObserver, MinMaxObserver])
def test_an_observer_counts_every_call_once(kind: Any) -> None:
    def prepare() -> nn.Module:
        return kind(dtype=torch.int8, qscheme=torch.per_tensor_affine)

    one, several = (observed(prepare, threads) for threads in (1, THREADS))
    assert one.keys() == several.keys()
    for name, expected in one.items():
        torch.testing.assert_close(several[name], expected, rtol=0, atol=0, msg=name)


def test_a_prepared_model_has_the_parameters_that_one_thread_finds() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    exported = torch.export.export(model, (batches()[0],))

    def prepare() -> nn.Module:
        return prepare_pt2e(exported, XNNPACKQuantizer())

    one, several = (observed(prepare, threads) for threads in (1, THREADS))
    for name, expected in one.items():
        torch.testing.assert_close(several[name], expected, rtol=0, atol=0, msg=name)


def test_observers_are_still_copied_and_pickled() -> None:
    model = nn.Sequential(nn.Linear(4, 4)).eval()
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    prepared = prepare_pt2e(torch.export.export(model, (x,)), XNNPACKQuantizer())
    others = [copy.deepcopy(prepared), pickle.loads(pickle.dumps(prepared))]
    prepared(x)
    expected = convert_pt2e(prepared)(x)
    for other in others:
        other(x)
        assert torch.equal(convert_pt2e(other)(x), expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="only where processes are forked")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_process_does_not_wait_for_a_thread_that_it_has_not() -> None:
    turn = OneAtATime()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(turn.__enter__).result()
        child = os.fork()
        if child == 0:
            signal.alarm(10)
            with turn:
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        pool.submit(turn.__exit__, None, None, None).result()
