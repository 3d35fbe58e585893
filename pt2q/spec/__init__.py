"""The vocabulary: specs, annotations, the quantizer interface, and the plan made from them."""
