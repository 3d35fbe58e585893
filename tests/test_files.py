"""Files are written whole or not at all: what stood there stays, and nothing is left over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pt2q.errors import DataError, SaveError
from pt2q.files import check_outputs, ensure_writable, final_path, outdated, replacing, write_bytes


def _names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_a_block_that_raises_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "m.pte"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(target) as draft:
        draft.write_text("new")
        draft.with_name("m.data").write_text("beside")
        raise KeyboardInterrupt
    assert target.read_text() == "old" and _names(tmp_path) == ["m.pte"]
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "a" / "b" / "m.pte"):
        raise ZeroDivisionError
    assert _names(tmp_path) == ["m.pte"]


def test_a_link_is_followed_and_modes_stay(tmp_path: Path) -> None:
    real, link = tmp_path / "there" / "real.pte", tmp_path / "link.pte"
    real.parent.mkdir()
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to(real)
    write_bytes(link, b"new")
    assert link.is_symlink() and real.read_text() == "new"
    assert real.stat().st_mode & 0o777 == 0o640
    dangling = tmp_path / "dangling.pte"
    dangling.symlink_to(tmp_path / "new" / "made.pte")
    write_bytes(dangling, b"new")
    assert dangling.is_symlink() and (tmp_path / "new" / "made.pte").read_text() == "new"


def test_drafts_of_drafts_come_to_the_end(tmp_path: Path) -> None:
    target, old = tmp_path / "m.onnx", tmp_path / "m.onnx.old.data"
    old.write_text("old data")
    with replacing(target) as outer:
        with replacing(outer) as inner:
            assert final_path(inner) == target
            assert final_path(inner.with_name("m.onnx.new.data")) == tmp_path / "m.onnx.new.data"
            inner.write_text("graph")
            inner.with_name("m.onnx.new.data").write_text("data")
            outdated(inner, old)
        assert old.exists() and not target.exists()
    assert _names(tmp_path) == ["m.onnx", "m.onnx.new.data"]


def test_what_cannot_be_written_is_said_before(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "fifo")
    for path, why in (
        (tmp_path, "it is a folder"),
        (tmp_path / "file" / "m.pte", "is a file, not a folder"),
        (tmp_path / "fifo", "it is no ordinary file"),
        (tmp_path / ("n" * 245 + ".pte"), "its name is too long: 249 characters"),
    ):
        with pytest.raises(SaveError, match=why):
            ensure_writable(path)
    ensure_writable(tmp_path / "new" / "folder" / "m.pte")
    assert _names(tmp_path) == ["fifo", "file"]


def test_outputs_are_no_inputs_and_not_each_other(tmp_path: Path) -> None:
    model, hard, soft = tmp_path / "m.pt2", tmp_path / "hard.pt2", tmp_path / "soft.pt2"
    model.write_text("model")
    os.link(model, hard)
    soft.symlink_to(model)
    for path in (model, hard, soft, tmp_path / "x" / ".." / "m.pt2"):
        with pytest.raises(DataError, match=r"is read by this command \(the model\): write --json"):
            check_outputs({"--json": path}, {"the model": model, "--recipe": None})
    with pytest.raises(DataError, match="is written twice: as --out and as --json"):
        check_outputs({"--out": tmp_path / "a", "--json": tmp_path / "b" / ".." / "a"}, {})
    check_outputs({"--out": tmp_path / "a", "--json": None}, {"the model": model})


KILLED = """
import sys, time
from pt2q.files import replacing
with replacing(sys.argv[1]) as draft:
    draft.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    target = tmp_path / "m.pte"
    target.write_text("old")
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(target)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "writing\n"
        with replacing(tmp_path / "other.pte") as draft:  # leaves the living alone
            draft.write_text("other")
        write_bytes(target, b"mine")
        assert len(_names(tmp_path)) == 3
        process.send_signal(signal.SIGKILL)
        process.wait()
    time.sleep(0.01)
    assert target.read_text() == "mine"
    write_bytes(target, b"new")
    assert _names(tmp_path) == ["m.pte", "other.pte"]
