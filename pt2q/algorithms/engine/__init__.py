"""The engine: a prepared graph run piece by piece, along its own order, in several lanes at once.

A program (`Program`) is a prepared module with what reading it once tells: the order of its nodes,
where each value is read last, which values are constants, which tensors it writes into. A lane
(`Lane`) is one way of running it: `Lane.floating()` takes observers for the identities they are,
`Lane.rounding()` lets each do what its quantize and dequantize will do, bit for bit; other choices
of who rounds are other lanes. A walk (`Walk`) runs a program on several batches in several lanes:

- It stands somewhere in the graph and goes forward. For each lane and batch it holds the values
  that nodes yet to come read, no others; each is dropped once its last reader is done. They lie in
  memory, or on request in files of a temporary folder which goes when the walk is closed.
- A piece, all nodes between two stops, runs over all batches before the next one begins. Where it
  stands the caller may look at the values, compute something from them, change weights or
  parameters, and go on: what comes after is computed with what was changed. What came before is
  not computed again. The floating lane keeps the tensors that the walk began with, unless a change
  is made for it too, as one is that keeps the function.
- `Walk.replay` runs part of what is to come and gives values from it without moving on: to judge
  a change, to reach what lies inside a piece that cannot be cut, or to finish the run as another
  lane would (one group rounded, all others not).

What makes the values those of running the whole, bit for bit:

- The same functions are called in the same order on the same tensors; a value that is a view of
  another stays one, in files as well, as long as either may be written.
- A tensor of the module that the graph writes into (a cache) belongs to a lane, and begins as
  it was when the model was prepared. Between its first and its last use there is no stop, so that
  each batch finds what the batch before it left, as in calls one after the other.
- An input that is written into is copied first; the caller's stays as it is.
- Bodies of control flow run whole, as part of their operator; `Taps` see what reaches a node in
  one, or in a piece that cannot be cut.

Operators that draw random numbers draw, in every lane, those of a seed of their own per batch: the
lanes agree, which calls of the whole would not.

Several processes walk together: each runs its own batches, and what is computed from all of them is
put together so that it does not matter how many processes there are (`Walk.shared`, `Ranks.share`;
docs/decisions).

Constants (weights, what observers make of them) are computed where a piece first reads them and
dropped after it: no more than one piece's are there at a time.
"""

from pt2q.algorithms.engine.lane import Lane
from pt2q.algorithms.engine.program import Program, Schedule
from pt2q.algorithms.engine.runner import Taps
from pt2q.algorithms.engine.walk import Walk

__all__ = ["Lane", "Program", "Schedule", "Taps", "Walk"]
