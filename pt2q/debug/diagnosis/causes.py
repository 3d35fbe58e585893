"""From what is seen of a group of tensors to the cause of its loss, and to what may help."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pt2q.debug.diagnosis.changes import ALGORITHM, CHANNEL, DEFAULT, FLOAT, FORM, OBSERVER, Change
from pt2q.debug.diagnosis.evidence import Evidence
from pt2q.debug.sensitivities.subjects import WEIGHT

Options = tuple[tuple[str, str], ...]
"""Kinds of changes with their values, the cheapest first."""


@dataclass(frozen=True)
class Cause:
    """A cause of losses.

    Args:
        name: what is said of it.
        shows: whether a group's evidence shows it; also told whether it is of weights.
        words: the evidence, in words.
        options: what may help beside leaving it in float.
    """

    name: str
    shows: Callable[[Evidence, bool], bool]
    words: Callable[[Evidence], str]
    options: Options = ()


SMOOTH, EQUALIZE, SCALES = (
    (ALGORITHM, n) for n in ("smooth_quant", "equalization", "scale_search")
)
MINMAX, HISTOGRAM = (OBSERVER, "minmax"), (OBSERVER, "histogram")

CAUSES = (
    Cause(
        "scale at its floor",
        lambda e, weight: e.at_floor >= 0.5,
        lambda e: (
            f"values of at most {e.largest:.2g} need a scale below the smallest allowed; "
            f"{e.levels:.1%} of the levels are used"
        ),
    ),
    Cause(
        "mask eaten by a range",
        lambda e, weight: not weight and e.masked > 0,
        lambda e: f"{e.masked:.1%} of the numbers are below -1000, and share a range with the rest",
    ),
    Cause(
        "few bits",
        lambda e, weight: 0 < e.bits <= 5,
        lambda e: f"{e.bits:.0f} bits",
        ((DEFAULT, ""), SCALES),
    ),
    Cause(
        "clipped",
        lambda e, weight: e.clipped > 0.005,
        lambda e: f"{e.clipped:.2%} of the numbers are beyond the range of integers",
        (MINMAX,),
    ),
    Cause(
        "unequal channels under a per-tensor weight",
        lambda e, weight: weight and not e.per_channel and e.channels > 6,
        lambda e: f"the largest channel is {e.channels:.0f} times the median one, under one scale",
        ((CHANNEL, ""), EQUALIZE),
    ),
    Cause(
        "outlier in a weight",
        lambda e, weight: weight and (e.outlier > 4 or e.channels > 6),
        lambda e: (
            f"the largest number is {e.outlier:.0f} times what one in 1000 exceeds, the "
            f"largest channel {e.channels:.0f} times the median one"
        ),
        ((CHANNEL, ""), SCALES),
    ),
    Cause(
        "range wider than the data",
        lambda e, weight: not weight and 0 < e.used < 0.35,
        lambda e: f"held-out data uses {e.used:.1%} of the range that calibration has found",
        (HISTOGRAM,),
    ),
    Cause(
        "outlier channel in an activation",
        lambda e, weight: not weight and e.channels > 6,
        lambda e: f"the largest channel is {e.channels:.0f} times the median one",
        (SMOOTH, EQUALIZE),
    ),
    Cause(
        "few levels used",
        lambda e, weight: e.levels < 0.15 and e.bits > 0,
        lambda e: f"{e.levels:.1%} of the levels are used",
        (HISTOGRAM, MINMAX),
    ),
)
OTHERWISE = Cause(
    "sensitive to rounding",
    lambda e, weight: True,
    lambda e: "nothing is odd about its values; the output depends on them",
    (MINMAX, SMOOTH),
)


def cause_of(evidence: Evidence, kind: str) -> Cause:
    """The first cause that the evidence shows.

    Args:
        evidence: of a group.
        kind: of the group.
    """
    weight = kind == WEIGHT
    return next((c for c in CAUSES if c.shows(evidence, weight)), OTHERWISE)


def proposals(cause: Cause, nodes: tuple[str, ...], kind: str) -> tuple[Change, ...]:
    """What may help, the cheapest first.

    Args:
        cause: of the loss.
        nodes: the operators that read the tensors and make them.
        kind: of the group; activations may have 16 bits, where the backend has kernels for that.
    """
    options = cause.options if kind == WEIGHT else (*cause.options, (FORM, "int16"))
    found = [Change(how, () if how == ALGORITHM else nodes, value) for how, value in options]
    return (*found, Change(FLOAT, nodes))
