"""Calibration on several processes, with the result of one."""

from pt2q.distributed.calibrating import calibrate
from pt2q.distributed.ranks import ALONE, Ranks, joined, together
from pt2q.distributed.training import whole_state

__all__ = ["ALONE", "Ranks", "calibrate", "joined", "together", "whole_state"]
