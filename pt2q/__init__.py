"""pt2q: PyTorch 2 Export quantization."""
