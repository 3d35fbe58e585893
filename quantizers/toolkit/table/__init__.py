"""What a backend's table is made of: rules, checks, and ways to annotate."""
