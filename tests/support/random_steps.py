"""Steps of random networks: what a recipe of any kind is a list of."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st


@dataclass(frozen=True)
class Step:
    """One step: what it does, with which earlier values, and a number that varies it."""

    kind: str
    first: int
    second: int
    variant: int


def step_lists(kinds: tuple[str, ...], max_steps: int) -> st.SearchStrategy[tuple[Step, ...]]:
    """One to ``max_steps`` steps of some kinds."""
    number = st.integers(0, 7)
    step = st.builds(Step, st.sampled_from(kinds), number, number, number)
    return st.lists(step, min_size=1, max_size=max_steps).map(tuple)


def drawn(count: int) -> settings:
    """So many networks, the same in every run.

    Recipes are short as they are: shrinking one takes minutes and tells little more.
    """
    return settings(
        deadline=None,
        derandomize=True,
        max_examples=count,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
