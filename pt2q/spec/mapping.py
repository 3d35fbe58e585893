"""How real numbers are mapped to integers: the words of affine quantization."""

from __future__ import annotations

from enum import Enum, auto


class MappingType(Enum):
    """Where the zero of the real numbers goes, and what ends where the integers do.

    For a range ``[low, high]`` that holds 0, and integers ``[quant_min, quant_max]``::

        SYMMETRIC                  scale = max(-low, high) / ((quant_max - quant_min) / 2)
        SYMMETRIC_NO_CLIPPING_ERR  scale = max(low / quant_min, high / quant_max)
        ASYMMETRIC                 scale = (high - low) / (quant_max - quant_min)
    """

    SYMMETRIC = auto()
    SYMMETRIC_NO_CLIPPING_ERR = auto()
    ASYMMETRIC = auto()


class ZeroPointDomain(Enum):
    """What a zero point is: an integer of the grid, a real number, or nothing.

    With ``q`` the integer: ``x = (q - zero_point) * scale`` for INT,
    ``x = (q - middle) * scale + zero_point`` for FLOAT, ``x = q * scale`` for NONE.
    """

    INT = auto()
    FLOAT = auto()
    NONE = auto()
