"""Several programs of one model, quantized together and written as methods of one file."""
