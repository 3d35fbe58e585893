"""What is found by name: ours and packages' own, and what is wrong with either."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pt2q.errors import PluginError, PluginWarning, UnknownNameError
from pt2q.registry import Registry

OURS = {"zeta": "pt2q_ours:ZETA", "alpha": "pt2q_ours:ALPHA"}


def text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a str, found {type(value).__name__}")
    return f"{name} is {value}"


def registry() -> Registry[str]:
    return Registry("letter", "pt2q.test_letters", OURS, text)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in sys.modules if name.startswith("letters_")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "pt2q_ours.py").write_text("ZETA = 'z'\nALPHA = 'a'\n")
    return tmp_path


def install(site: Path, package: str, source: str, **offers: str) -> None:
    """What pip leaves behind: a module and the metadata of its distribution."""
    info = site / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = [f"{name} = {where}" for name, where in offers.items()]
    (info / "entry_points.txt").write_text("\n".join(["[pt2q.test_letters]", *lines]))
    (site / f"{package}.py").write_text(source)


def test_ours_come_first_and_in_their_order(site) -> None:
    install(site, "letters_b", "BETA = 'b'", beta="letters_b:BETA", aleph="letters_b:BETA")
    found = registry()
    assert list(found) == ["zeta", "alpha", "aleph", "beta"]
    assert len(found) == 4
    assert "beta" in found and "gamma" not in found
    assert found["zeta"] == "zeta is z"
    assert found["beta"] == "beta is b"
    assert [found.package(name) for name in ("zeta", "beta")] == ["pt2q", "letters_b"]


def test_nothing_is_imported_before_it_is_asked_for(site) -> None:
    install(site, "letters_loud", "raise SystemError('imported')", loud="letters_loud:X")
    found = registry()
    assert "loud" in found
    assert found["alpha"] == "alpha is a"
    with pytest.raises(PluginError, match="imported"):
        found["loud"]


@pytest.mark.parametrize(
    ("source", "where", "reason"),
    [
        ("import letters_nowhere", "letters_bad:X", "ModuleNotFoundError: .*letters_nowhere"),
        ("X = 3", "letters_bad:X", "TypeError: expected a str, found int"),
        ("", "letters_bad:X", "AttributeError: .*'X'"),
    ],
)
def test_a_broken_package_is_named_and_left_out(site, source, where, reason) -> None:
    install(site, "letters_bad", source, bad=where)
    found = registry()
    message = f"package letters_bad offers letter 'bad' as {where}.*{reason}.*uninstall"
    with pytest.raises(PluginError, match=message):
        found["bad"]
    with pytest.warns(PluginWarning, match=message):
        assert found.available() == {"zeta": "zeta is z", "alpha": "alpha is a"}


def test_a_name_of_ours_is_not_taken(site) -> None:
    install(site, "letters_thief", "X = 'stolen'", zeta="letters_thief:X")
    found = registry()
    with pytest.warns(PluginWarning, match="'zeta' is pt2q's own: that of letters_thief"):
        assert found["zeta"] == "zeta is z"


def test_of_two_packages_with_one_name_neither_is_used(site) -> None:
    install(site, "letters_one", "X = '1'", beta="letters_one:X")
    install(site, "letters_two", "X = '2'", beta="letters_two:X")
    found = registry()
    assert list(found) == ["zeta", "alpha"]
    with (
        pytest.warns(PluginWarning, match="letters_one and letters_two both offer letter 'beta'"),
        pytest.raises(UnknownNameError, match="unknown letter 'beta'"),
    ):
        found["beta"]


def test_unknown_names_list_what_there_is(site) -> None:
    with pytest.raises(UnknownNameError) as caught:
        registry()["alhpa"]
    expected = "unknown letter 'alhpa': choose from zeta, alpha, did you mean 'alpha'?"
    assert str(caught.value) == expected
    with pytest.raises(UnknownNameError, match=r"choose from zeta, alpha$"):
        registry().package("omega")
