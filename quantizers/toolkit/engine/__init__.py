"""What runs a table: matching, choosing what gains, annotating, reporting."""
