"""Ids as text: one user or item has one spelling, whatever type it was stored as."""

from numbers import Integral, Real
from typing import Any

import polars as pl

# An integer that text and number spell alike: no sign but a minus, no leading zero, fits 64 bits.
CANONICAL_INTEGER = r"^(0|-?[1-9]\d{0,17})$"


def canonical_id(value: Any) -> str:
    """The spelling of one id: 42, 42.0 and "42" are "42"; any other text stays as it is.

    Example::

        >>> [canonical_id(value) for value in (42, 42.0, "042", "B00X")]
        ["42", "42", "042", "B00X"]
    """
    if isinstance(value, Integral):
        return str(int(value))
    if isinstance(value, Real) and float(value).is_integer():
        return str(int(float(value)))
    return str(value)


def in_order(ids: pl.Series) -> pl.Series:
    """Distinct ids, sorted: by value where all of them are integers, else by the bytes of their text.

    Args:
        ids: text or integers without nulls.
    """
    distinct = ids.unique()
    if distinct.dtype == pl.String and distinct.str.contains(CANONICAL_INTEGER).all():
        distinct = distinct.cast(pl.Int64)
    return distinct.sort().cast(pl.String)
