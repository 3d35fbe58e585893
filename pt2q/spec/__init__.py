"""The vocabulary: specs, annotations, the quantizer interface, and the plan made from them."""

# Enters the law of sharing into the table that `pt2q.verify` checks.
from pt2q.spec import sharing_law as sharing_law
