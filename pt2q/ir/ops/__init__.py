"""The one place that names operators.

Operators are compared as overloads through frozen sets; `overloads` turns what a user gives (a
packet, an overload, a Python function) into such a set. Arguments are read and written by schema
name. All of it is read from here, as ``ops.RELU`` or ``ops.argument(node, "weight")``.
"""

from pt2q.ir.ops.calls import *
from pt2q.ir.ops.control_flow import *
from pt2q.ir.ops.elementwise import *
from pt2q.ir.ops.layers import *
from pt2q.ir.ops.movement import *
from pt2q.ir.ops.names import *
from pt2q.ir.ops.quantized import *
from pt2q.ir.ops.state import *
