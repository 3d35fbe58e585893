"""The picture of the rooms is that of the code, and the order drawn is the one that is enforced."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def rooms() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rooms", ROOT / "docs" / "rooms.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["rooms"] = module
    spec.loader.exec_module(module)
    return module


def contract() -> list[str]:
    """The rooms of the contract from the highest to the lowest, siblings in one entry."""
    text = (ROOT / "pyproject.toml").read_text()
    layers = re.search(r"^layers = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert layers is not None
    return re.findall(r'"([^"]+)"', layers[1])


def test_the_picture_is_up_to_date(rooms: ModuleType) -> None:
    assert rooms.PICTURE.read_text() == rooms.drawing(), "run `python docs/rooms.py`"


def test_the_picture_has_the_order_of_the_contract(rooms: ModuleType) -> None:
    floors = {
        name.strip().removeprefix("pt2q."): floor
        for floor, names in enumerate(contract())
        for name in names.split("|")
    }
    drawn = [floors[room] for room in rooms.ORDER]
    assert drawn == sorted(drawn)


def test_every_folder_of_the_package_is_a_room(rooms: ModuleType) -> None:
    folders = {path.parent.name for path in (ROOT / "pt2q").glob("*/__init__.py")}
    assert folders | {"passes", "quantizers", "flow"} == set(rooms.ORDER)


def test_no_room_imports_a_higher_one(rooms: ModuleType) -> None:
    order = rooms.ORDER
    upward = {pair for pair in rooms.arrows() if order.index(pair[1]) < order.index(pair[0])}
    assert upward == set()


def test_places_named_in_the_table_exist() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    table = page[page.index("| to change | open |") : page.index("## The plan comes first")]
    places = re.findall(r"`((?:pt2q|passes|quantizers|examples)/[^`]*)`", table)
    assert len(places) >= 12
    assert [place for place in places if not (ROOT / place).exists()] == []
