"""Times of any kind -> integers at the source's full resolution, with words for what they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import polars as pl

from persona.errors import DataError
from recsys.data.log.tables import Table

# Integers below the first bound are steps of some clock; then seconds since 1970 (from 1973 on), milliseconds,
# microseconds, nanoseconds.
BOUNDS = np.array([1e8, 1e11, 1e14, 1e17])
UNITS = ("steps", "seconds", "milliseconds", "microseconds", "nanoseconds")
PER_SECOND = (1, 1, 10**3, 10**6, 10**9)
LATEST = int(datetime(2100, 1, 1, tzinfo=UTC).timestamp())
MICROSECONDS = 10**6
SAMPLE = 1000
STEPS = "steps of a clock that all users share"

ISO_FORMATS = ("%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f%#z", "%Y-%m-%dT%H:%M", "%Y-%m-%d", "%Y%m%d")
MONTH_FIRST = ("%m-%d-%YT%H:%M:%S", "%m-%d-%YT%H:%M", "%m-%d-%Y")
DAY_FIRST = ("%d-%m-%YT%H:%M:%S", "%d-%m-%YT%H:%M", "%d-%m-%Y")


@dataclass(frozen=True)
class Times:
    """Times of all rows.

    Attributes:
        ticks: (N,) int64, at full resolution.
        per_second: ticks in a second.
        kind: in words.
        is_date: whether seconds count from 1970; otherwise they are steps.
    """

    ticks: np.ndarray
    per_second: int
    kind: str
    is_date: bool


def looks_like_time(values: pl.Series) -> bool:
    """Whether text values are seconds since 1970 (or finer), or dates. Small numbers are not: they could be ratings."""
    values = values.drop_nulls()
    if values.is_empty():
        return False
    numbers = values.cast(pl.Float64, strict=False)
    if numbers.null_count() == 0:
        return bool((numbers >= BOUNDS[0]).all())
    return bool(_best_formats(values))


def read_times(values: pl.Series, table: Table) -> Times:
    """Understand a time column.

    Args:
        values: without nulls, in the rows of ``table``.
        table: tells the place of a row.

    Raises:
        DataError: a value is no time, or not of the unit or form of the others.
    """
    dtype = values.dtype
    if dtype in (pl.Categorical, pl.Enum):
        values, dtype = values.cast(pl.String), pl.String()
    if dtype.is_temporal() and dtype not in (pl.Time, pl.Duration):
        return _from_dates(values, "dates" if dtype == pl.Date else "dates and times", table)
    if dtype == pl.String:
        return _from_text(values, table)
    if dtype.is_integer():
        return _from_integers(values, table)
    if dtype.is_float():
        return _from_floats(values, table)
    raise DataError(f"{table.label}: time column {values.name!r} is of type {dtype}: give numbers, dates or ISO text")


def _fail(table: Table, values: pl.Series, row: int, reason: str) -> DataError:
    value = values[row]
    shown = repr(value) if isinstance(value, str) else str(value)
    return DataError(f"{table.at(row)}: column {values.name!r} holds {shown}, {reason}")


def _from_text(values: pl.Series, table: Table) -> Times:
    head = values.head(SAMPLE).str.strip_chars()
    if 2 * head.cast(pl.Float64, strict=False).null_count() <= len(head):
        integers = values.str.strip_chars().cast(pl.Int64, strict=False)
        if integers.null_count() == 0:
            return _from_integers(integers, table)
        numbers = values.str.strip_chars().cast(pl.Float64, strict=False)
        if numbers.null_count():
            raise _fail(
                table,
                values,
                _first(numbers.is_null()),
                "which is no number like those of the other rows: mend or drop the row",
            )
        return _from_floats(numbers, table)
    formats = _best_formats(values)
    if not formats:
        raise _fail(
            table, values, 0, "which is no time: use seconds since 1970 or ISO text such as 2024-05-31T12:00:00"
        )
    parsed = [(form, _parse(values, form)) for form in formats]
    whole = [(form, dates) for form, dates in parsed if dates.null_count() == 0]
    if len(whole) > 1:
        raise _fail(table, values, 0, "and no row tells whether day or month comes first: write dates as YYYY-MM-DD")
    if not whole:
        form, dates = max(parsed, key=lambda pair: -pair[1].null_count())
        raise _fail(
            table,
            values,
            _first(dates.is_null()),
            "which is no time like those of the other rows: mend or drop the row",
        )
    form, dates = whole[0]
    return _from_dates(dates, f"text like {_example(form)}", table)


def _best_formats(values: pl.Series) -> list[str]:
    """The formats that most of the first values have; day-first and month-first can both be among them."""
    head = values.head(SAMPLE)
    parsed = {form: len(head) - _parse(head, form).null_count() for form in (*ISO_FORMATS, *MONTH_FIRST, *DAY_FIRST)}
    most = max(parsed.values())
    return [form for form, count in parsed.items() if count == most and 2 * count > len(head)]


def _parse(values: pl.Series, form: str) -> pl.Series:
    """Text -> datetime in UTC, null where it does not have this form. Blank or "T", "/", "." or "-" are alike in dates."""
    text = values.str.strip_chars().str.replace(r" ?UTC$", "Z").str.replace(r"^(\d+)[/.](\d+)[/.](\d+)", "$1-$2-$3")
    text = text.str.replace(r"^([\d-]+) +", "${1}T")
    dates = text.str.to_datetime(form, strict=False, time_unit="us", exact=True)
    return dates.dt.convert_time_zone("UTC").dt.replace_time_zone(None) if "z" in form else dates


def _example(form: str) -> str:
    return datetime(2024, 5, 31, 12).strftime(form.replace("%.f", "").replace("%#z", "+00:00"))


def _from_dates(dates: pl.Series, kind: str, table: Table) -> Times:
    ticks = dates.cast(pl.Datetime("us")).to_physical().to_numpy()
    wrong = (ticks < 0) | (ticks >= LATEST * MICROSECONDS)
    if wrong.any():
        raise _fail(table, dates, int(np.argmax(wrong)), "which is not between 1970 and 2100: mend or drop the row")
    return Times(ticks, MICROSECONDS, kind, is_date=True)


def _from_floats(values: pl.Series, table: Table) -> Times:
    finite = values.is_finite()
    if not finite.all():
        raise _fail(table, values, _first(~finite), "which is no time: mend or drop the row")
    numbers = values.cast(pl.Float64).to_numpy()
    if (numbers == np.floor(numbers)).all() and np.abs(numbers).max() < 2**62:
        return _from_integers(values.cast(pl.Int64), table)
    unit = _check_unit(numbers, lambda row, reason: _fail(table, values, row, reason))
    if unit == 0:
        return Times(np.round(numbers * MICROSECONDS).astype(np.int64), MICROSECONDS, STEPS, False)
    fine = max(MICROSECONDS // PER_SECOND[unit], 1)
    ticks = np.round(numbers * fine).astype(np.int64)
    return Times(ticks, PER_SECOND[unit] * fine, f"{UNITS[unit]} since 1970, with fractions", is_date=True)


def _from_integers(values: pl.Series, table: Table) -> Times:
    whole = values.cast(pl.Int64, strict=False)
    if whole.null_count():
        raise _fail(table, values, _first(whole.is_null()), "which is too large for a time: mend or drop the row")
    ticks = whole.to_numpy()
    if _are_date_numbers(ticks):
        return _from_dates(_parse(values.cast(pl.String), "%Y%m%d"), "dates as YYYYMMDD", table)
    unit = _check_unit(ticks, lambda row, reason: _fail(table, values, row, reason))
    kind = f"{UNITS[unit]} since 1970" if unit else STEPS
    return Times(ticks, PER_SECOND[unit], kind, is_date=unit > 0)


def _are_date_numbers(ticks: np.ndarray) -> bool:
    """Whether all numbers read as YYYYMMDD from 1970 to 2099."""
    if ticks.min() < 19700101 or ticks.max() > 20991231:
        return False
    month, day = ticks // 100 % 100, ticks % 100
    return bool(((month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)).all())


def _check_unit(numbers: np.ndarray, fail: Callable[[int, str], DataError]) -> int:
    """The unit that most numbers have, as an index of ``UNITS``; refuses negative, absurd and mixed ones."""
    if (numbers < 0).any():
        raise fail(int(np.argmax(numbers < 0)), "a time before 1970: mend or drop the row")
    lowest, highest = np.searchsorted(BOUNDS, [numbers.min(), numbers.max()], side="right")
    units = np.full(1, lowest) if lowest == highest else np.searchsorted(BOUNDS, numbers, side="right")
    counts = np.bincount(units, minlength=len(UNITS))
    unit = int(np.argmax(counts))
    if lowest != highest:
        row = int(np.argmax(units != unit))
        other = "too small for a time since 1973" if units[row] == 0 else UNITS[units[row]]
        raise fail(row, f"{other} where most rows hold {UNITS[unit]}: use one unit")
    if unit and numbers.max() >= float(LATEST) * PER_SECOND[unit]:
        raise fail(int(np.argmax(numbers)), f"after the year 2100 as {UNITS[unit]} since 1970: mend or drop the row")
    return unit


def _first(mask: pl.Series) -> int:
    """The first row where ``mask`` holds."""
    return int(mask.arg_true()[0])
