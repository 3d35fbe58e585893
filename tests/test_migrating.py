"""The page for those who come from the other PT2E stack: complete, fresh, and true."""

from __future__ import annotations

import re
import sys
from importlib import import_module

import pytest
from support.ported_stack import PEER, ROOT, XNNPACK

import pt2q
from pt2q.errors import Pt2qError

sys.path.insert(0, str(ROOT / "docs"))

import migrating
from migrating_reasons import INSTEAD, INSTEAD_OF_MODULES
from ported_imports import OFFERED_BY, is_in, place_of, ported

TEXT = migrating.PAGE.read_text()


def test_every_public_name_is_offered_or_listed_with_a_reason() -> None:
    found = migrating.names_by_module()
    assert sum(map(len, found.values())) > 150
    assert {"TorchAODType", "WrapperModule", "prepare_pt2e"} <= {
        name for names in found.values() for name in names
    }
    assert migrating.unlisted() == []


def test_a_name_that_is_neither_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module(PEER), "__all__", ["FakeQuantize", "NewlyMade"])
    assert migrating.unlisted() == [f"{PEER}.NewlyMade"]


def test_the_tables_of_the_page_are_fresh() -> None:
    """`make pages` writes them again."""
    assert migrating.filled(TEXT) == TEXT


def test_reasons_are_for_names_that_are_there_and_not_offered() -> None:
    there = migrating.names_by_module()
    names = {name for found in there.values() for name in found}
    assert set(INSTEAD) <= names
    assert [name for name in INSTEAD if place_of(name)] == []
    for package in INSTEAD_OF_MODULES:
        inside = [n for module in there if is_in(module, (package,)) for n in there[module]]
        assert any(place_of(name) is None and name not in INSTEAD for name in inside), package


def test_what_stands_in_for_a_name_exists() -> None:
    for text in (*INSTEAD.values(), *INSTEAD_OF_MODULES.values()):
        for path in re.findall(r"`(pt2q[\w.]*)`", text):
            module, _, name = path.rpartition(".")
            assert hasattr(import_module(module or path), name or "__all__"), path


@pytest.mark.parametrize("module", OFFERED_BY)
def test_names_that_modules_offer_can_be_imported(module: str) -> None:
    offered = import_module(module)
    assert [name for name in offered.__all__ if not hasattr(offered, name)] == []


def test_the_script_after_is_the_one_before_with_other_imports() -> None:
    before, after = (re.search(rf"^```{k}\n(.*?)^```", TEXT, re.M | re.S) for k in ("py", "python"))
    assert before is not None and after is not None
    assert ported(before[1], (PEER, XNNPACK)) == after[1]


def test_imports_are_changed_one_by_one() -> None:
    source = (
        "import torch\n"
        f"from {PEER} import TorchAODType, FakeQuantize as FQ  # both\n"
        "def late():\n"
        f"    from {PEER}.quantizer import (\n        Quantizer,\n        DuplicateDQPass,\n    )\n"
        f"from {PEER}ish import FakeQuantize\n"
        "from .quantizer import Quantizer\n"
    )
    assert ported(source) == (
        "import torch\n"
        "from pt2q import FakeQuantize as FQ\n"
        f"from {PEER} import TorchAODType\n"
        "def late():\n"
        "    from pt2q import Quantizer\n"
        "    from pt2q.passes import DuplicateDQPass\n"
        f"from {PEER}ish import FakeQuantize\n"
        "from .quantizer import Quantizer\n"
    )


def test_the_command_prints_a_file_with_other_imports(
    tmp_path, capsys: pytest.CaptureFixture[str]
) -> None:
    import runpy

    path = tmp_path / "mine.py"
    path.write_text(f"from {PEER} import FakeQuantize\n")
    sys.argv, argv = ["ported_imports.py", str(path)], sys.argv
    try:
        runpy.run_path(str(ROOT / "docs" / "ported_imports.py"), run_name="__main__")
    finally:
        sys.argv = argv
    assert capsys.readouterr().out == "from pt2q import FakeQuantize\n"
    assert pt2q.FakeQuantize is import_module("pt2q.observers").FakeQuantize


@pytest.mark.parametrize("make", [pt2q.MinMaxObserver, pt2q.FakeQuantize])
def test_integers_that_do_not_fit_are_an_assertion_too(make: type) -> None:
    for kind in (AssertionError, ValueError, Pt2qError):
        with pytest.raises(kind, match="quant_min=5, quant_max=1"):
            make(quant_min=5, quant_max=1)
