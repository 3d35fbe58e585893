"""`python -m pt2q` is the same as `pt2q`."""

from pt2q.app.cli import main

main()
