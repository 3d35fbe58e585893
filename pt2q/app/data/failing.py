"""A model that fails on data, as a sentence about the data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pt2q.errors import DataError, Pt2qError
from pt2q.library_output import first_line


@contextmanager
def failing(what: str, number: int) -> Iterator[None]:
    """Within it, what a model raises on data that it does not take, such as a token it has not.

    Args:
        what: the data, as messages say it.
        number: of the batch, from 1.

    Raises:
        DataError: the model fails.
    """
    try:
        yield
    except Pt2qError:
        raise
    except (IndexError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{what}: the model fails on batch {number}: {first_line(error)}"
        ) from error
