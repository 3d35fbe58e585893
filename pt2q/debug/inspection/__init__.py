"""What a model is made of, and what backends would quantize of it, before there is any data."""
