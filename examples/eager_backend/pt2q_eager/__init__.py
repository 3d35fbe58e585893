"""A target for pt2q: quantized programs that PyTorch runs eagerly."""
