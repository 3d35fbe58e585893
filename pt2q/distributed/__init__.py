"""Calibration on several processes, with the result of one."""

from pt2q.distributed.calibrating import calibrate
from pt2q.distributed.ranks import Ranks, joined

__all__ = ["Ranks", "calibrate", "joined"]
