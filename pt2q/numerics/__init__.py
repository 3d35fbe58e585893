"""The numbers of quantization as pure functions: ranges, scales, rounding, and what it costs."""
