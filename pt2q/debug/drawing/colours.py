"""Colours of errors: from red, where next to nothing of the signal is left, to green."""

from __future__ import annotations

import math

WORST, BEST = 10.0, 50.0
"""The signal to noise ratios in dB at which the scale of colours ends."""
_STOPS = ((215, 48, 39), (253, 174, 97), (255, 255, 191), (166, 217, 106), (26, 152, 80))
"""Five colours of ColorBrewer's RdYlGn, which read well in grey, too."""


def colour(decibels: float | None) -> str:
    """The colour of an error, as ``#rrggbb``.

    Args:
        decibels: a signal to noise ratio; None where there is none, which is light grey.
    """
    if decibels is None or math.isnan(decibels):
        return "#eeeeee"
    share = min(max((decibels - WORST) / (BEST - WORST), 0.0), 1.0) * (len(_STOPS) - 1)
    low = min(int(share), len(_STOPS) - 2)
    parts = [
        round(a + (b - a) * (share - low))
        for a, b in zip(_STOPS[low], _STOPS[low + 1], strict=True)
    ]
    return "#{:02x}{:02x}{:02x}".format(*parts)


def gradient() -> list[dict[str, object]]:
    """The scale as stops between 0 and 1."""
    last = len(_STOPS) - 1
    return [
        {"stop": index / last, "bgColor": "#{:02x}{:02x}{:02x}".format(*stop)}
        for index, stop in enumerate(_STOPS)
    ]
