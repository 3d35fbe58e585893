"""The cheapest way to quantize a model that keeps within a bound."""
