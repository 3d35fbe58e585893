"""Where a model rounds its activations: what each rounding is, and what it did to the data."""
