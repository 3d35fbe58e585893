"""Observers that collect no statistics: parameters given, derived or left to run time."""
