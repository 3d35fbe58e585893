"""Calibration data: where it comes from, what of it is calibrated on, what looks wrong with it."""
