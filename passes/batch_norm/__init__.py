"""Folding batch norms into the operators in front of them, and fusing them for training."""
