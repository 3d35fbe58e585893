"""What a new process loads and says: no more than what it is asked for needs."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

import pt2q

NEW = """
import json, logging, sys, torch
handled = (logging.getLogger().level, list(logging.getLogger().handlers))
import pt2q

def loaded():
    rooms = ("algorithms", "debug", "app", "deploy")
    return [room for room in rooms if f"pt2q.{room}" in sys.modules]

found = {"at first": loaded()}
pt2q.debug
pt2q.quantize_pt2e
found["asked for"] = loaded()

from pt2q.quantizers import XNNPACKQuantizer
model = torch.export.export(torch.nn.Linear(4, 4).eval(), (torch.randn(2, 4),))
prepared = pt2q.prepare_pt2e(model, XNNPACKQuantizer())
prepared(torch.randn(2, 4))
pt2q.convert_pt2e(prepared)
found["of the peer"] = [name for name in sys.modules if name.startswith("torchao")]

from pt2q.deploy.executorch import lower
program = lower(torch.nn.ReLU(), (torch.randn(2),))
found["lowered"] = program.load()(torch.tensor([-1.0, 1.0]))[0].tolist()
now = (logging.getLogger().level, list(logging.getLogger().handlers))
found["logs as before"] = now == handled
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def new() -> subprocess.CompletedProcess[str]:
    """One process for all that needs one: starting it takes the time."""
    return subprocess.run([sys.executable, "-c", NEW], capture_output=True, text=True)


@pytest.fixture
def found(new: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert new.returncode == 0, new.stderr
    return json.loads(new.stdout)


def test_rooms_that_are_not_needed_are_loaded_when_asked_for(found: dict[str, Any]) -> None:
    assert found["at first"] == []
    assert found["asked for"] == ["algorithms", "debug"]


def test_the_peer_is_not_imported(found: dict[str, Any]) -> None:
    assert found["of the peer"] == []


def test_importing_and_lowering_stays_quiet(
    new: subprocess.CompletedProcess[str], found: dict[str, Any]
) -> None:
    """One line of its own is all that is printed."""
    assert (new.stderr, new.stdout.count("\n")) == ("", 1)
    assert found["lowered"] == [0.0, 1.0]
    assert found["logs as before"] is True


def test_every_public_name_is_there() -> None:
    assert set(pt2q.__all__) <= set(dir(pt2q))
    for name in pt2q.__all__:
        assert getattr(pt2q, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        pt2q.quantise  # noqa: B018 - looking it up is what is tested
