"""Parquet files and NumPy archives with one row an image."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from persona.errors import DataError
from vision.data.columns import SYNONYMS, Columns, map_columns, normalise
from vision.data.sources.found import Found

TEST_WORDS = frozenset({"test", "testing", "true", "1"})
Explicit = dict[str, str | None]


def read_parquet(path: Path, explicit: Explicit) -> Found:
    """One row an image: encoded bytes, ``{bytes, path}`` records, or paths relative to the file.

    Raises:
        DataError: the file is damaged, has no rows, or its columns cannot be understood.
    """
    try:
        frame = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} is no readable Parquet file ({reason}): export it again") from error
    if frame.is_empty():
        raise DataError(f"{path} has no rows: export it again")
    columns = map_columns(frame.columns, explicit, str(path))
    if columns.order is not None:
        frame = frame.sort(columns.order, maintain_order=True)
    images = _encoded(frame[columns.image], path)
    missing = [i for i, image in enumerate(images) if image is None]
    for role in ("label", "device"):
        nulls = frame[getattr(columns, role)].is_null()
        if nulls.any():
            raise DataError(
                f"{path}: column {getattr(columns, role)!r} has no {role} in row {nulls.arg_true()[0] + 1}: fill it in"
            )
    keep = [i for i, image in enumerate(images) if image is not None]
    frame = frame[keep]
    return Found(
        source=str(path),
        format="Parquet",
        columns=columns.as_dict(),
        order=_order(columns),
        places=[f"{path} row {i + 1}" for i in keep],
        images=[image for image in images if image is not None],
        skipped=[f"{path} row {i + 1}: it is empty" for i in missing],
        **_known(
            {role: frame[name].to_numpy() for role, name in columns.as_dict().items() if name and role != "image"}
        ),
    )


def _encoded(column: pl.Series, path: Path) -> list[Path | bytes | None]:
    if column.dtype == pl.Binary:
        return list(column.to_list())
    if column.dtype == pl.String:
        return [None if name is None else path.parent / name for name in column.to_list()]
    if column.dtype == pl.Struct and "bytes" in column.struct.fields:
        return list(column.struct.field("bytes").to_list())
    raise DataError(
        f"{path}: column {column.name!r} holds {column.dtype}, but images are encoded bytes or paths of files: "
        "give image=..."
    )


def read_npz(path: Path, explicit: Explicit) -> Found:
    """Arrays with one entry an image: pixels (N, H, W) or (N, H, W, C), labels, device ids.

    Raises:
        DataError: the file is damaged or pickled, or its arrays cannot be understood.
    """
    arrays = _arrays(path)
    image = explicit.get("image") or _only_pictures(arrays)
    columns = map_columns(list(arrays), {**explicit, "image": image}, str(path))
    pixels = _as_pixels(arrays[columns.image], columns.image, path)
    chosen = {role: arrays[name] for role, name in columns.as_dict().items() if name and role != "image"}
    for role, values in chosen.items():
        if values.shape != (len(pixels),):
            raise DataError(
                f"{path}: array {getattr(columns, role)!r} has shape {values.shape}, but there are {len(pixels)} images: "
                f"give one {role} an image"
            )
    if columns.order is not None:
        order = np.argsort(chosen["order"], kind="stable")
        pixels, chosen = pixels[order], {role: values[order] for role, values in chosen.items()}
    return Found(
        source=str(path),
        format="NumPy archive",
        columns=columns.as_dict(),
        order=_order(columns),
        places=[f"{path} image {i}" for i in range(len(pixels))],
        images=pixels,
        **_known(chosen),
    )


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        hint = "store arrays of numbers and text only" if "pickle" in str(error).lower() else "write it again"
        raise DataError(f"{path} is no readable NumPy archive ({error}): {hint}") from error


def _only_pictures(arrays: dict[str, NDArray[Any]]) -> str | None:
    """The only array that has the shape of images, where no name tells."""
    named = [name for name in arrays if any(normalise(name) in tier for tier in SYNONYMS["image"])]
    shaped = [name for name, array in arrays.items() if array.ndim in (3, 4)]
    return shaped[0] if not named and len(shaped) == 1 else None


def _as_pixels(array: NDArray[Any], name: str, path: Path) -> NDArray[np.uint8]:
    """(N, H, W, C) uint8 out of (N, H, W), (N, H, W, C) or (N, C, H, W); floats in [0, 1] become 0..255."""
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim == 4 and array.shape[3] not in (1, 3) and array.shape[1] in (1, 3):
        array = array.transpose(0, 2, 3, 1)
    if array.ndim != 4 or array.shape[3] not in (1, 3) or not len(array):
        raise DataError(
            f"{path}: array {name!r} has shape {array.shape}, but images are (N, height, width) or "
            "(N, height, width, 1 or 3): give image=..."
        )
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if not np.issubdtype(array.dtype, np.number) or not np.isfinite(array).all():
        raise DataError(f"{path}: array {name!r} of {array.dtype} holds values that are no pixels: give numbers 0..255")
    low, high = float(array.min()), float(array.max())
    if low < 0 or high > 255:
        raise DataError(f"{path}: array {name!r} has values from {low:g} to {high:g}: give pixels in 0..255 or 0..1")
    scale = 255.0 if np.issubdtype(array.dtype, np.floating) and high <= 1 else 1.0
    return np.ascontiguousarray(np.rint(array * scale).astype(np.uint8))


def _known(arrays: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """Labels, devices, groups as text; tests as truth values."""
    known: dict[str, Any] = {"labels": _texts(arrays["label"]), "devices": _texts(arrays["device"])}
    if "group" in arrays:
        known["groups"] = _texts(arrays["group"])
    if "test" in arrays:
        known["tests"] = [text.lower() in TEST_WORDS for text in _texts(arrays["test"])]
    return known


def _texts(values: Sequence[Any] | NDArray[Any]) -> list[str]:
    """Ids as text: 3, 3.0 and "3" are one."""
    plain = values.tolist() if isinstance(values, np.ndarray) else list(values)
    return [str(int(v)) if isinstance(v, float) and v.is_integer() else str(v).strip() for v in plain]


def _order(columns: Columns) -> str:
    return "order of the rows" if columns.order is None else f"order of {columns.order}"
