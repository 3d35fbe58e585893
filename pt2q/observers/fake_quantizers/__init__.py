"""Observers that also round what passes, for training."""
