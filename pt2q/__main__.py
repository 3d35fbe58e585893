"""`python -m pt2q` is the same as `pt2q`."""

from pt2q.cli import main

main()
