"""A quantized model beside its float model: pairing values, running both, telling errors apart."""
