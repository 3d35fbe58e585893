"""Programs saved and loaded, whole, interrupted, truncated."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import torch
from support.lowering import Lowered

from pt2q.deploy.executorch import load
from pt2q.errors import DataError, SaveError
from pt2q.files import ensure_writable


def test_save_and_load(small: Lowered, tmp_path: Path) -> None:
    path = small.program.save(tmp_path / "new" / "folder" / "net.pte")
    assert path.read_bytes() == small.program.buffer
    assert [p.name for p in path.parent.iterdir()] == ["net.pte"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
    loaded = load(path)
    path.unlink()  # the file was read whole
    assert torch.equal(loaded(*small.inputs)[0], small.program.load()(*small.inputs)[0])
    assert loaded.method_names == ("forward",)


def test_an_interrupted_save_keeps_the_old_file(
    small: Lowered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.pte"
    path.write_bytes(b"old")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        small.program.save(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_save_where_nothing_can_be_written(small: Lowered, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for target in (tmp_path / "file" / "net.pte", tmp_path):
        with pytest.raises(SaveError, match=r"cannot write .*(directory|folder)"):
            small.program.save(target)
        with pytest.raises(SaveError, match=r"cannot write"):
            ensure_writable(target)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("keep", [0, 10, 0.5, -100])
def test_a_truncated_program(small: Lowered, tmp_path: Path, keep: float) -> None:
    data = small.program.buffer
    path = tmp_path / "cut.pte"
    path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(DataError, match=r"cut.pte: .*not a complete ExecuTorch program"):
        load(path)


def test_garbage_and_missing_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match=r"not a complete .*identifier"):
        load(b"no program at all" * 1000)
    with pytest.raises(DataError, match=r"missing.pte: No such file"):
        load(tmp_path / "missing.pte")
    assert capfd.readouterr().err == ""  # the native log went into the message
