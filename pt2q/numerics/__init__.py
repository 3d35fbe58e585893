"""Pure functions: ranges, scales and zero points, rounding, histograms, the search for a range."""
