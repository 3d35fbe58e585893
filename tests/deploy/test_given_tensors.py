"""Tensors that have no memory to read are a named error in every runtime, not the end of it."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pt2q.deploy import executorch, inductor, onnx
from pt2q.deploy.given_tensors import why_no_memory
from pt2q.deploy.inductor.package_inputs import PackageInput
from pt2q.errors import InputShapeError, SaveError

ODD = {
    "on device meta": lambda: torch.empty(2, 8, device="meta"),
    "is sparse_coo": lambda: torch.randn(2, 8).to_sparse(),
    "is a nested tensor": lambda: torch.nested.nested_tensor(
        [torch.randn(8), torch.randn(8)], layout=torch.jagged
    ),
    "is a FakeTensor": lambda: torch._subclasses.FakeTensorMode().from_tensor(torch.randn(2, 8)),
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Callable[..., Any]]:
    program = torch.export.export(nn.Linear(8, 4).eval(), (torch.randn(2, 8),))
    path = tmp_path_factory.mktemp("odd") / "m.onnx"
    onnx.export(program, (torch.randn(2, 8),), path)
    package = PackageInput("x", "float32", (2, 8), (0, 1))
    return {
        "executorch": executorch.lower(program).load(),
        "onnx": onnx.load(path),
        "inductor": lambda x: package.fitted(x, {}),
    }


@pytest.mark.parametrize("runtime", ["executorch", "onnx", "inductor"])
@pytest.mark.parametrize("message", ODD)
def test_no_memory_to_read(
    loaded: dict[str, Callable[..., Any]], runtime: str, message: str
) -> None:
    with pytest.raises(InputShapeError, match=rf"input ('?[x\w]+'?) .*{message}"):
        loaded[runtime](ODD[message]())
    loaded[runtime](torch.randn(2, 8))


def test_plain_memory() -> None:
    for x in (torch.zeros(0), torch.ones(2, 3).t(), nn.Parameter(torch.ones(3)), torch.ones(())):
        assert why_no_memory(x) == ""


def test_a_full_disk_is_a_named_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = (torch.randn(2, 8),)
    exported = torch.export.export(nn.Linear(8, 4).eval(), example)
    program = executorch.lower(exported)
    monkeypatch.setattr(inductor.ahead_of_time, "_compiled", lambda *_: b"x" * 10_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        for write in (
            lambda: program.save(tmp_path / "new" / "m.pte"),
            lambda: onnx.export(exported, example, tmp_path / "m.onnx"),
            lambda: inductor.package(exported, example, tmp_path / "m.pt2"),
        ):
            with pytest.raises(
                SaveError, match=r"cannot write .*m\.(pte|onnx|pt2): File too large"
            ):
                write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())
