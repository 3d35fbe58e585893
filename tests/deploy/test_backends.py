"""All backends by name: what they say of themselves is so, and so in the documentation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pt2q.deploy import BACKENDS

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"


def documented() -> dict[str, list[str]]:
    """The cells of the table of backends, by name."""
    rows = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines()]
    return {
        c[0].split("`")[1]: c[1:]
        for c in rows
        if len(c) == 5 and c[0].startswith("`") and c[0] != "`--backend`"
    }


def test_the_table_of_the_documentation_is_that_of_the_registry() -> None:
    assert list(documented()) == list(BACKENDS)


@pytest.mark.parametrize("name", BACKENDS)
def test_what_is_documented_is_so(name: str) -> None:
    backend = BACKENDS[name]
    _, suffix, modes, activations = documented()[name]
    assert backend.name == name
    assert suffix == f"`{backend.suffix}`"
    assert modes == ", ".join(backend.modes)
    spec = backend.default_config.input_activation
    assert spec is not None
    symmetric = ", symmetric" if spec.qscheme is torch.per_tensor_symmetric else ""
    assert activations == str(spec.dtype).removeprefix("torch.") + symmetric


@pytest.mark.parametrize("name", BACKENDS)
def test_scales_and_modes_are_those_of_the_configurations(name: str) -> None:
    backend = BACKENDS[name]
    for mode in backend.modes:
        config = backend.config(mode)
        assert config.is_dynamic == (mode == "dynamic")
        if config.weight.qscheme is not None:  # float16 has no scales
            assert config.is_per_channel == (backend.scales[0] == "channel")


def test_a_row_that_is_no_backend_is_refused() -> None:
    check = BACKENDS._check
    with pytest.raises(TypeError, match=r"expected a pt2q\.deploy\.Backend, found str"):
        check("theirs", "text")
    with pytest.raises(TypeError, match="it calls itself 'x86'"):
        check("theirs", BACKENDS["x86"])


def test_all_of_ours_can_be_loaded() -> None:
    assert list(BACKENDS.available()) == list(BACKENDS)
    assert {BACKENDS.package(name) for name in BACKENDS} == {"pt2q"}
