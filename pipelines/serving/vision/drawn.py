"""Images to try a classifier with: the names of its classes, drawn as several devices could show them.

They are made here, so that no bundle has to carry anybody's images.

Shapes: C channels, H height, W width.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont, ImageOps

MOST = 10
# Share of the picture that a name may take.
_FILLED = 0.8
_SMALLEST = 4


def drawn_streams(names: Sequence[str], shape: tuple[int, int, int]) -> list[tuple[str, list[bytes]]]:
    """What is the same for all images of a stream, and its images as PNG files, one a class, ten at most.

    Args:
        names: of the classes.
        shape: (C, H, W) of the images; C 1 or 3.
    """
    pictures = [_drawn(name, shape) for name in names[:MOST]]
    width = shape[2]
    changes: dict[str, Callable[[Image.Image], Image.Image]] = {
        "As drawn": lambda picture: picture,
        "Out of focus": lambda picture: picture.filter(ImageFilter.GaussianBlur(max(0.6, width / 24))),
        "Faint": lambda picture: ImageEnhance.Contrast(picture).enhance(0.35),
        "Noisy": _noisy,
        "Dark on light": ImageOps.invert,
    }
    return [(name, [_png(change(picture)) for picture in pictures]) for name, change in changes.items()]


def _drawn(name: str, shape: tuple[int, int, int]) -> Image.Image:
    """A name in bold white on black, as large as fits."""
    channels, height, width = shape
    picture = Image.new("L" if channels == 1 else "RGB", (width, height))
    pen, bold = ImageDraw.Draw(picture), round(height / 32)
    size = float(height)
    while True:
        font = ImageFont.load_default(max(size, _SMALLEST))
        left, top, right, bottom = pen.textbbox((0, 0), name, font=font, stroke_width=bold)
        if size <= _SMALLEST or (right - left <= _FILLED * width and bottom - top <= _FILLED * height):
            break
        size *= 0.9
    place = ((width - right - left) / 2, (height - bottom - top) / 2)
    pen.text(place, name, fill="white", font=font, stroke_width=bold)
    return picture


def _noisy(picture: Image.Image) -> Image.Image:
    pixels = np.asarray(picture, dtype=np.float64)
    noise = np.random.default_rng(0).normal(scale=48.0, size=pixels.shape)
    return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
