"""Simulated shifts: what an editor meets beside the devices at hand, so that it learns to read more than these show.

Each device is seen through one or two photometric changes of its own, the same for all of its images: no colours, a negative,
few shades, other hues, contrast or brightness, blur, or edges alone. Labels stay what they are.

Letters: P positions, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2 import functional as transforms

from vision.data.images import DeviceImages

# At most so many changes one after the other.
CHANGES = 2
_SOBEL = ((1.0, 0.0, -1.0), (2.0, 0.0, -2.0), (1.0, 0.0, -1.0))


class ShiftedImages:
    """The images of ``data``, each device under a shift of its own.

    Args:
        data: the images.
        copy: number of the shift; another one shifts every device in another way.
    """

    def __init__(self, data: DeviceImages, copy: int) -> None:
        self.data, self.copy = data, copy

    def tensor(self, positions: NDArray[np.integer]) -> Tensor:
        """(P,) ascending -> (P, C, H, W) uint8."""
        owners = self.data.device_of(positions)
        return torch.cat(
            [
                shift(self.data.tensor(positions[owners == device]), [self.copy, int(device)])
                for device in np.unique(owners)
            ]
        )


def shift(images: Tensor, seed: list[int]) -> Tensor:
    """(P, C, H, W) uint8 under one shift, drawn from ``seed``."""
    rng = np.random.default_rng(seed)
    colour = images if images.shape[1] == 3 else images.expand(-1, 3, -1, -1)
    for name in rng.choice(list(SHIFTS), int(rng.integers(1, CHANGES + 1)), replace=False):
        colour = SHIFTS[name](colour, rng)
    return colour if images.shape[1] == 3 else transforms.rgb_to_grayscale(colour)


def _edges(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Dark lines where the brightness changes, on white."""
    gray = transforms.gaussian_blur(transforms.rgb_to_grayscale(images.float()), [5, 5], [float(rng.uniform(0.6, 1.5))])
    padded = functional.pad(gray, (1, 1, 1, 1), mode="replicate")
    kernel = torch.tensor(_SOBEL)
    across, down = (functional.conv2d(padded, k[None, None]) for k in (kernel, kernel.T))
    strength = (across.square() + down.square()).sqrt()
    strength = strength / strength.amax((1, 2, 3), keepdim=True).clamp_min(1)
    lines = 255 * (1 - (float(rng.uniform(2, 5)) * strength).clamp(0, 1))
    return lines.expand(-1, 3, -1, -1).to(torch.uint8)


def _either(rng: np.random.Generator, less: tuple[float, float], more: tuple[float, float]) -> float:
    return float(rng.choice([rng.uniform(*less), rng.uniform(*more)]))


SHIFTS: dict[str, Callable[[Tensor, np.random.Generator], Tensor]] = {
    "gray": lambda x, rng: transforms.rgb_to_grayscale(x, 3),
    "negative": lambda x, rng: transforms.invert(x),
    "posterise": lambda x, rng: transforms.posterize(x, int(rng.integers(1, 4))),
    "solarise": lambda x, rng: transforms.solarize(x, float(rng.uniform(64, 192))),
    "equalise": lambda x, rng: transforms.equalize(x),
    "hue": lambda x, rng: transforms.adjust_hue(x, float(rng.uniform(-0.5, 0.5))),
    "saturation": lambda x, rng: transforms.adjust_saturation(x, float(rng.uniform(2, 5))),
    "contrast": lambda x, rng: transforms.adjust_contrast(x, _either(rng, (0.2, 0.5), (2, 4))),
    "blur": lambda x, rng: transforms.gaussian_blur(x, [9, 9], [float(rng.uniform(1, 3))]),
    "edges": _edges,
    "channels": lambda x, rng: x[:, torch.from_numpy(rng.permutation(3))],
    "brightness": lambda x, rng: transforms.adjust_brightness(x, _either(rng, (0.3, 0.6), (1.5, 2.5))),
}
