"""Quantizing by weights: int8 or 4 bits, alone or with activations of any type."""
