"""Ranges from a smallest and a largest value: of all that was seen, averaged, or per group."""
