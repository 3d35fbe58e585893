"""What is replaced in other packages is what it was before, whatever happened meanwhile."""

from __future__ import annotations

import gc
import types

import pytest

from pt2q.collection import paused_collection
from pt2q.replaced import replaced


class Base:
    def name(self) -> str:
        return "base"


class Own(Base):
    size = 1


def test_what_is_inherited_is_inherited_again() -> None:
    with pytest.raises(KeyError), replaced(Own, name=lambda _: "other", size=2):
        assert Own().name() == "other" and Own.size == 2 and Base().name() == "base"
        raise KeyError
    assert Own().name() == "base" and Own.size == 1 and "name" not in vars(Own)


def test_one_within_the_other() -> None:
    module = types.SimpleNamespace(size=1)
    with replaced(module, size=2), replaced(module, size=3, more=4):
        assert (module.size, module.more) == (3, 4)
    assert vars(module) == {"size": 1}


def test_what_was_taken_away_meanwhile_stays_away() -> None:
    module = types.SimpleNamespace()
    with replaced(module, size=2):
        del module.size
    assert not vars(module)


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_runs_again_if_it_ran(enabled: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with pytest.raises(KeyError), paused_collection():
            assert not gc.isenabled()
            raise KeyError
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()
