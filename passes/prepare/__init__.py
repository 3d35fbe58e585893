"""What `prepare_pt2e` does around annotation: control flow opened, observers inserted."""
