"""Row edits: a stream of events edits the rows of an embedding table in closed form, without labels or gradients.

sums.py    what is remembered of the stream: sums by row, which add up in any order, decay, and can be taken out again
edits.py   from sums to rows and biases: the row generator, its ridge fit, shrinkage, the bound against colluders, bytes
caps.py    how much one user counts
"""

from persona.rows.caps import Caps
from persona.rows.edits import (
    RowEdits,
    decode_rows,
    encode_rows,
    features,
    fit_generator,
    row_bytes,
)
from persona.rows.sums import Read, RowSums, load_sums, save_sums

__all__ = [
    "Caps",
    "Read",
    "RowEdits",
    "RowSums",
    "decode_rows",
    "encode_rows",
    "features",
    "fit_generator",
    "load_sums",
    "row_bytes",
    "save_sums",
]
