"""A hostile model file runs nothing; an honest one of any kind is read."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.command_line import Run, fails
from torch import Tensor, nn
from torch.export import Dim

from pt2q.app.archive import check_archive
from pt2q.app.program_file import read_program
from pt2q.app.trust import TRUSTED
from pt2q.errors import DataError, UntrustedFileError


class Hostile:
    """Writes a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


class Sizes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor, more: dict[str, Tensor]) -> Tensor:
        y = torch.cond(x.shape[0] > 4, lambda x: x.relu(), lambda x: x * 2, (x,))
        return self.linear(y).reshape(2, -1, 8)[:, : x.shape[0] // 3] + more["y"].mean()


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("honest") / "m.pt2"
    args = (torch.randn(6, 8), {"y": torch.randn(9)})
    shapes = ({0: Dim.AUTO}, {"y": {0: Dim("length", max=99)}})
    torch.export.save(torch.export.export(Sizes().eval(), args, dynamic_shapes=shapes), path)
    return path


def test_an_honest_file_is_read(honest: Path) -> None:
    check_archive(honest)
    assert read_program(honest).module()(torch.ones(6, 8), {"y": torch.ones(3)}).shape[0] == 2


def _changed(honest: Path, out: Path, change: Callable[[str, bytes], bytes], *more: Any) -> Path:
    with zipfile.ZipFile(honest) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
        for name, data in more:
            new.writestr(f"m/{name}", data)
    return out


def _pickled(mark: Path) -> bytes:
    stream = io.BytesIO()
    torch.save(((Hostile(mark),), {}), stream)
    return stream.getvalue()


def _program(name: str, data: bytes, key: str, value: Any) -> bytes:
    if "/models/" not in name:
        return data
    text = json.loads(data)
    if key == "guards_code":
        text[key] = [value]
        return json.dumps(text).encode()
    waiting, done = [text], 0
    while waiting:
        at = waiting.pop()
        if isinstance(at, dict):
            if key in at and not done:
                at[key], done = value, 1
            waiting += at.values()
        elif isinstance(at, list):
            waiting += at
    assert done, key
    return json.dumps(text).encode()


def _hostile(kind: str, honest: Path, tmp_path: Path, mark: Path) -> Path:
    out, code = tmp_path / "hostile.pt2", f"__import__('pathlib').Path({str(mark)!r}).touch()"
    match kind:
        case "sample inputs":
            data = _pickled(mark)
            return _changed(honest, out, lambda n, d: data if "sample_inputs" in n else d)
        case "weight":

            def weight(name: str, data: bytes) -> bytes:
                if name.endswith("weight_0"):
                    return pickle.dumps(Hostile(mark))
                return data.replace(b'"use_pickle": false', b'"use_pickle": true')

            return _changed(honest, out, weight)
        case "object":
            entry = {"config": {"o": {"path_name": "custom_obj_0", "tensor_meta": None}}}
            text = json.dumps(entry).encode()
            return _changed(
                honest,
                out,
                lambda n, d: text if "constants_config" in n else d,
                ("data/constants/custom_obj_0", pickle.dumps(Hostile(mark))),
            )
        case "another file":
            return _changed(honest, out, lambda _, d: d, ("state.pkl", pickle.dumps(1)))
        case "twice":
            name = "models/model.json"
            with pytest.warns(UserWarning, match="Duplicate"):
                return _changed(honest, out, lambda _, d: d, (name, b"{}"))
        case "expression":
            return _changed(honest, out, lambda n, d: _program(n, d, "expr_str", code))
        case "guard":
            return _changed(honest, out, lambda n, d: _program(n, d, "guards_code", code))
    target = {"call": "torch.os.system", "class": "torch.ops.aten.__class__.mro"}[kind]
    return _changed(honest, out, lambda n, d: _program(n, d, "target", target))


@pytest.mark.parametrize(
    "kind",
    [
        *("sample inputs", "weight", "object", "another file", "twice"),
        *("expression", "guard", "call", "class"),
    ],
)
def test_a_hostile_file_runs_nothing(kind: str, honest: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    path = _hostile(kind, honest, tmp_path, mark)
    with pytest.raises(UntrustedFileError, match=r"pt2q --trust COMMAND"):
        read_program(path)
    assert not mark.exists()


def test_what_is_trusted_is_loaded(run: Run, honest: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    path = _hostile("sample inputs", honest, tmp_path, mark)
    fails(run("inspect", path), 1, "may run code when it is loaded.*--trust")
    assert not mark.exists()
    assert run("--trust", "inspect", path)[0] in (0, 1)
    assert mark.exists()
    TRUSTED.set(False)


def test_other_kinds_of_archives_are_named(honest: Path, tmp_path: Path) -> None:
    package = ("data/aotinductor/model/m.so", b"code")
    with pytest.raises(DataError, match="a compiled package, not an exported program"):
        read_program(_changed(honest, tmp_path / "a.pt2", lambda _, d: d, package))
    torch.save({"a": torch.ones(2)}, tmp_path / "b.pt2")
    with pytest.raises(DataError, match=r"what torch.save writes, no exported program"):
        read_program(tmp_path / "b.pt2")
    (tmp_path / "c.pt2").write_bytes(honest.read_bytes()[:2000])
    with pytest.raises(DataError, match="truncated"):
        read_program(tmp_path / "c.pt2")
    with pytest.raises(DataError, match="no such file"):
        read_program(tmp_path / ("n" * 400))
