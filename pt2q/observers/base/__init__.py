"""What observers share: how they are made, and what their range, scheme and axis mean."""
