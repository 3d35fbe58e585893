"""The three standard calls: log the values of two models, take them out, compare them."""
