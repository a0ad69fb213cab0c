"""One image file or message -> pixels, or the reason why not. A broken image costs one line, never the run."""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

# A photograph of a present-day camera has 12 to 50 million pixels; beyond that lie decompression bombs.
MAX_PIXELS = 64_000_000
GRAY_MODES = frozenset({"1", "L", "LA", "I", "I;16", "I;16B", "F"})
# What PIL raises on damaged files, by format and by kind of damage.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, KeyError, IndexError, TypeError, struct.error, OverflowError)


class UnreadableImage(Exception):
    """Why an image is skipped, as the end of a sentence."""


@dataclass(frozen=True)
class Probe:
    """What the header of an image says: height and width in pixels, whether it has colour."""

    height: int
    width: int
    colour: bool


def probe(source: Path | bytes) -> Probe:
    """Read the header of an image.

    Raises:
        UnreadableImage: it is no image, or one of too many pixels.
    """
    try:
        with warnings.catch_warnings(), _open(source) as image:
            return Probe(image.height, image.width, image.mode not in GRAY_MODES)
    except _BROKEN as error:
        raise UnreadableImage(_reason(error)) from error


def decode(source: Path | bytes, size: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Pixels (H, W, C) of an image, stretched to ``size`` = (H, W, C) and turned upright as its EXIF data says.

    Transparent parts become white. Of an animation the first picture counts.

    Raises:
        UnreadableImage: the file is damaged or no image.
    """
    height, width, channels = size
    try:
        with warnings.catch_warnings(), _open(source) as opened:
            image = ImageOps.exif_transpose(opened)
            image = _flat(image).convert("L" if channels == 1 else "RGB")
            if image.size != (width, height):
                image = image.resize((width, height), Image.Resampling.BILINEAR)
            return np.asarray(image, dtype=np.uint8).reshape(height, width, channels)
    except _BROKEN as error:
        raise UnreadableImage(_reason(error)) from error


def _open(source: Path | bytes) -> Image.Image:
    # The limit below refuses more sharply than PIL's own warning.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    try:
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
    except Image.DecompressionBombError as error:
        raise UnreadableImage(f"it has more than {MAX_PIXELS:,} pixels") from error
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise UnreadableImage(f"it has {image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")
    return image


def _flat(image: Image.Image) -> Image.Image:
    """Without transparency, and with 8 bits a channel."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        # 16-bit pictures use the upper range; anything within 8 bits is taken as it is.
        scale = 1.0 if values.max(initial=0) <= 255 else 1 / 257
        return Image.fromarray(np.clip(values * scale, 0, 255).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image


def _reason(error: BaseException) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    if "cannot identify image file" in text:
        return "it is no image that can be read"
    return f"it is damaged ({text})"
