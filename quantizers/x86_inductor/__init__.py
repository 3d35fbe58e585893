"""Inductor on x86: what oneDNN computes in int8."""
