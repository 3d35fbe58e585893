"""Ranges of least squared error, from a histogram of what was seen."""
