"""The demo: a small network for handwritten digits, quantized and run through ExecuTorch."""
