"""The 15 standard corruptions at severities 1 to 5, seeded.

Source: Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
ICLR'19, in the implementation of the package ``imagecorruptions-imaug``.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from persona.errors import ConfigError, check_known

CORRUPTIONS = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
SEVERITIES = (1, 2, 3, 4, 5)
# The package refuses smaller images.
SMALLEST = 32
# Share of pixels that impulse noise hits, by severity.
IMPULSES = (0.03, 0.06, 0.09, 0.17, 0.27)


def check_corruption(name: str, severity: int) -> None:
    """Refuse an unknown corruption or severity.

    Raises:
        ConfigError: one of them is unknown.
    """
    check_known("corruption", name, CORRUPTIONS)
    if severity not in SEVERITIES:
        raise ConfigError(f"the severity of a corruption is {severity}, but it has to be between 1 and 5")


def corrupt(image: NDArray[np.uint8], name: str, severity: int, seed: int | list[int]) -> NDArray[np.uint8]:
    """Corrupt one image; the same seed gives the same picture.

    Images with a side below 32 pixels are enlarged to it by repeating their edges and cropped afterwards; gray images are
    corrupted in colour and averaged.

    Args:
        image: (H, W, C) uint8, C 1 or 3.
        name: one of ``CORRUPTIONS``.
        severity: 1 to 5.
        seed: of all that is random in it.

    Returns:
        (H, W, C) uint8.

    Raises:
        ConfigError: unknown corruption or severity, or the package is not installed.
    """
    check_corruption(name, severity)
    package = _package()
    height, width, channels = image.shape
    below, right = max(0, SMALLEST - height), max(0, SMALLEST - width)
    top, left = below // 2, right // 2
    padded = np.pad(image, ((top, below - top), (left, right - left), (0, 0)), mode="edge")
    colour = np.repeat(padded, 3, axis=2) if channels == 1 else padded
    rng = np.random.default_rng(seed)
    if name == "impulse_noise":
        # The package's own version draws from a generator that cannot be seeded.
        noise = importlib.import_module("skimage.util").random_noise
        spoiled = np.clip(noise(colour / 255.0, mode="s&p", amount=IMPULSES[severity - 1], rng=rng), 0, 1) * 255
    else:
        state = int(rng.integers(2**31))
        options: dict[str, Any] = {"seed": state} if name == "glass_blur" else {}
        with _global_seed(state):
            spoiled = package.corrupt(colour, severity=severity, corruption_name=name, **options)
    cropped = np.asarray(spoiled)[top : top + height, left : left + width]
    if channels == 1:
        cropped = cropped.mean(axis=2, keepdims=True)
    rounded: NDArray[np.uint8] = np.rint(cropped).astype(np.uint8)
    return rounded


def _package() -> Any:
    try:
        return importlib.import_module("imagecorruptions")
    except ImportError as error:
        raise ConfigError(
            f"corrupted streams need a package that cannot be imported ({error}): "
            "pip install imagecorruptions-imaug==1.1.5"
        ) from error


@contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    """Seed NumPy's global generator, which the package draws from, and put it back afterwards."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)
