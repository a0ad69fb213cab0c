"""Ids as text: one user or item has one spelling, whatever type it was stored as."""

from __future__ import annotations

from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a device spells ids without polars
    import polars as pl

# An integer that text and number spell alike: no sign but a minus, no leading zero, fits 64 bits.
INTEGER = r"^(0|-?[1-9]\d{0,17})$"
# The same, or one that went through a float column on its way into text.
INTEGER_OR_FLOAT = r"^(0|-?[1-9]\d{0,17})(\.0+)?$"


def canonical_id(value: Any) -> str:
    """The spelling of one id: 42, 42.0 and " 42" are "42"; any other text only loses blanks around it.

    Example::

        >>> [canonical_id(value) for value in (42, 42.0, "042", "B00X")]
        ["42", "42", "042", "B00X"]
    """
    if isinstance(value, Integral):
        return str(int(value))
    if isinstance(value, Real) and float(value).is_integer():
        return str(int(float(value)))
    return str(value).strip()


def canonical_texts(ids: pl.Series) -> pl.Series:
    """The spelling of each id of a column, (n,) -> (n,) String; as ``canonical_id``, but "42.0" becomes "42" as well where
    the whole column is such text, which is what integers with gaps turn into on their way through pandas and CSV.

    Args:
        ids: integers, whole floats or text.
    """
    import polars as pl

    if ids.dtype.is_float():
        ids = ids.cast(pl.Int64)
    texts = ids.cast(pl.String).str.strip_chars()
    if ids.dtype == pl.String and texts.str.contains(INTEGER_OR_FLOAT).all():
        return texts.str.replace(r"\.0+$", "")
    return texts


def in_order(texts: pl.Series) -> pl.Series:
    """Distinct ids (String), sorted: by value where all of them are integers, else by the bytes of their text."""
    import polars as pl

    distinct = texts.unique()
    if distinct.str.contains(INTEGER).all():
        distinct = distinct.cast(pl.Int64)
    return distinct.sort().cast(pl.String)
