"""The tests that ExecuTorch installs beside its XNNPACK quantizer, with their imports changed."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from support.ported_stack import PEER, ROOT, XNNPACK, installed, python, write_ported

sys.path.insert(0, str(ROOT / "docs"))

from migrating_reasons import DIFFERENCES, RANGES

TESTS = "executorch.backends.xnnpack.test.quantizer"
CONFTEST = """
from pathlib import Path

from support.ported_stack import take_from

take_from(Path(__file__).parent)
"""
MINUTES = 20

pytestmark = [pytest.mark.slow, pytest.mark.timeout(MINUTES * 60)]


def outcomes(folder: Path, *options: str) -> dict[str, bool]:
    """Whether the tests of each name pass; those that skip themselves are left out."""
    (folder / "conftest.py").write_text(CONFTEST)
    report = folder / "report.xml"
    tests = folder.joinpath(*TESTS.split("."))
    arguments = ["-m", "pytest", tests, f"--junitxml={report}", "-q", "-p", "no:cacheprovider"]
    ran = python(*arguments, *options, folder=folder, timeout=MINUTES * 60)
    assert report.exists(), ran.stdout + ran.stderr
    found: dict[str, bool] = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        if case.find("skipped") is None:
            passes = case.find("failure") is None and case.find("error") is None
            name = str(case.get("name"))
            found[name] = passes and found.get(name, True)
    return found


def write(folder: Path, *stacks: str) -> None:
    for test in sorted(installed(TESTS).glob("test_*.py")):
        assert PEER in test.read_text()
    assert len(write_ported(TESTS, folder, stacks)) == 3
    assert write_ported("torchao.testing.pt2e", folder, (PEER,))


def named(quantizer: str) -> set[str]:
    return {name for names in DIFFERENCES[quantizer].values() for name in names}


@pytest.fixture
def with_their_quantizer(tmp_path: Path) -> Path:
    """Tests and quantizer with changed imports."""
    write(tmp_path, PEER)
    assert write_ported(XNNPACK, tmp_path, (PEER,))
    return tmp_path


def test_with_the_quantizer_that_they_are_for(with_their_quantizer: Path) -> None:
    found = outcomes(with_their_quantizer)
    assert len(found) > 50
    assert {name for name, passes in found.items() if not passes} == named("theirs")


def test_what_differs_by_its_ranges_passes_with_the_ranges_of_there(
    with_their_quantizer: Path,
) -> None:
    """One observer keeps its import; every bit is then as in FX."""
    module = with_their_quantizer.joinpath(*XNNPACK.split("."), "xnnpack_quantizer.py")
    text, count = re.subn(
        r"^(from pt2q import .*)HistogramObserver, ", r"\1", module.read_text(), flags=re.M
    )
    assert count == 1
    module.write_text(
        text.replace("import torch\n", f"import torch\nfrom {PEER} import HistogramObserver\n", 1)
    )
    wanted = DIFFERENCES["theirs"][RANGES]
    found = outcomes(with_their_quantizer, "-k", " or ".join(wanted))
    assert set(wanted) <= set(found)
    assert {name for name in wanted if not found[name]} == set()


def test_with_our_quantizer(tmp_path: Path) -> None:
    write(tmp_path, PEER, XNNPACK)
    found = outcomes(tmp_path)
    assert len(found) > 50
    assert {name for name, passes in found.items() if not passes} == named("ours")
