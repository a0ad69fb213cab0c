"""Id columns -> codes into an ordered vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from persona.errors import DataError
from recsys.data.ids import canonical_texts, in_order
from recsys.data.log.tables import Table

MISSING_WORDS = ("nan", "null", "none", "na", "n/a", "<na>")


@dataclass(frozen=True)
class Vocabulary:
    """The ids of a column and their codes.

    Attributes:
        keys: every value as it stands in the column (``id``), and its ``code``; several values may be one id.
        texts: (n,) ids as text: numbers in numerical order, else in the order of the bytes.
    """

    keys: pl.DataFrame
    texts: pl.Series

    @classmethod
    def of(cls, distinct: pl.Series) -> Vocabulary:
        """The vocabulary of a column's distinct values, none of them null or wrong; their order does not count."""
        texts = canonical_texts(distinct)
        vocabulary = in_order(texts)
        codes = texts.cast(pl.Enum(vocabulary)).to_physical().cast(pl.UInt32)
        return cls(pl.DataFrame({"id": distinct, "code": codes}), vocabulary)

    def encode(self, values: pl.Series) -> NDArray[np.uint32]:
        """(N,) values -> (N,) codes."""
        joined = pl.DataFrame({"id": values}).join(self.keys, on="id", how="left", maintain_order="left")
        return joined["code"].to_numpy()


def encode_ids(values: pl.Series, table: Table) -> tuple[NDArray[np.uint32], pl.Series]:
    """Number the ids of a column (N,) in the order of the vocabulary.

    Args:
        values: without nulls, in the rows of ``table``.
        table: tells the place of a row.

    Returns:
        codes (N,), and the vocabulary (n,) as text. It depends on the set of ids only, not on the order of rows.

    Raises:
        DataError: the column is of a type that is no id, or a value is empty or a fraction.
    """
    values = as_ids(values, table)
    distinct = values.unique()
    check_values(distinct, values, table)
    vocabulary = Vocabulary.of(distinct)
    return vocabulary.encode(values), vocabulary.texts


def as_ids(values: pl.Series, table: Table) -> pl.Series:
    """The column as integers, floats or text.

    Raises:
        DataError: it is of another type.
    """
    dtype = values.dtype
    if dtype in (pl.Categorical, pl.Enum):
        return values.cast(pl.String)
    if not (dtype.is_integer() or dtype.is_float() or dtype == pl.String):
        raise DataError(f"{table.label}: id column {values.name!r} is of type {dtype}: give integers or text")
    return values


def wrong_values(distinct: pl.Series) -> tuple[pl.Series, str]:
    """Fractions, infinities and empty texts among ``distinct``, and why they are no ids."""
    if distinct.dtype.is_float():
        wrong = distinct.filter((~distinct.is_finite()) | (distinct != distinct.floor()) | (distinct.abs() >= 2.0**53))
        return wrong, "which is no id: give integers or text"
    if distinct.dtype == pl.String:
        return distinct.filter(distinct.str.strip_chars() == ""), "which is no id: fill it or drop the row"
    return distinct.clear(), ""


def check_values(distinct: pl.Series, values: pl.Series, table: Table) -> None:
    """Refuse wrong values; ``values`` serves to find the row.

    Raises:
        DataError: there is one.
    """
    wrong, reason = wrong_values(distinct)
    if len(wrong):
        row = int(values.is_in(wrong.implode()).arg_true()[0])
        raise DataError(f"{table.at(row)}: column {values.name!r} holds {values[row]!r}, {reason}")


def note_missing_words(vocabulary: pl.Series, role: str) -> list[str]:
    """A note on ids such as "nan", which are kept, but look like gaps that some tool wrote out as text."""
    words = vocabulary.filter(vocabulary.str.to_lowercase().is_in(MISSING_WORDS)).to_list()
    return [f"mind the {role} {word!r}: it looks like a missing id that was written out as text" for word in words]
