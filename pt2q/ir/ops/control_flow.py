"""Operators that take graphs."""

from __future__ import annotations

import torch

COND = torch.ops.higher_order.cond
WHILE_LOOP = torch.ops.higher_order.while_loop
SCAN = torch.ops.higher_order.scan
MAP = torch.ops.higher_order.map_impl
