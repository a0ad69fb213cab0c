"""``DeviceImages``: every device's images in stream order, as flat arrays.

Example, two devices with three and two images::

    labels    4 2 9 | 2 7
    offsets   0 3 5          device d owns positions offsets[d] .. offsets[d + 1] - 1, in stream order

A *position* is an index into ``pixels`` and ``labels``. Everything downstream (protocols, streams, metrics) speaks of
positions and of devices, which are indices into ``device_ids``.

Shape letters: N images, D devices, K classes, P positions asked for, H height, W width, C channels (1 or 3).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from persona.arrays import arrays_from_bytes, arrays_to_bytes, read_file
from persona.errors import ConfigError, DataError, FormatError
from persona.prepared import PreparedFormat
from persona.storage import atomic_folder, write_json

if TYPE_CHECKING:  # whoever only looks at images needs no torch
    from torch import Tensor

FORMAT = PreparedFormat(
    "persona-images", 1, "images.json", "images", "images", ("digest", "device_ids", "class_names", "groups", "meta")
)

UInt8Array = NDArray[np.uint8]
Int64Array = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class DeviceImages:
    """Every device's images in stream order.

    Attributes:
        pixels: (N, H, W, C) uint8.
        labels: (N,) class of each image, 0..K-1.
        offsets: (D + 1,) where each device's images begin; the last entry is N.
        device_ids: (D,) the devices' ids as text.
        class_names: (K,) names of the classes.
        groups: (D,) the population of each device, "" where the source knows none.
        reserved: (D,) whether the source keeps the device for tests.
        meta: how the data came about. JSON values only.

    Raises:
        DataError: the arrays do not fit together.
    """

    pixels: UInt8Array
    labels: Int64Array
    offsets: Int64Array
    device_ids: tuple[str, ...]
    class_names: tuple[str, ...]
    groups: tuple[str, ...]
    reserved: NDArray[np.bool_]
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n, d = len(self.labels), len(self.device_ids)
        fits = (
            self.pixels.ndim == 4
            and self.pixels.dtype == np.uint8
            and self.pixels.shape[3] in (1, 3)
            and len(self.pixels) == n
            and self.offsets.shape == (d + 1,)
            and len(self.groups) == len(self.reserved) == d
            and self.offsets[0] == 0
            and self.offsets[-1] == n
            and bool(np.all(np.diff(self.offsets) > 0))
        )
        if not fits:
            raise DataError("images, labels, devices and groups do not fit together: build them with from_arrays")
        if n and not 0 <= self.labels.min() <= self.labels.max() < len(self.class_names):
            raise DataError(f"a label lies outside 0..{len(self.class_names) - 1}: give every class a name")

    @classmethod
    def from_arrays(
        cls,
        pixels: UInt8Array,
        labels: NDArray[np.integer],
        devices: NDArray[np.integer],
        *,
        device_ids: Sequence[str],
        class_names: Sequence[str],
        groups: Sequence[str] | None = None,
        reserved: Sequence[bool] | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> DeviceImages:
        """Group images by device; within a device they keep the order in which they are given.

        Args:
            pixels: (N, H, W, C) uint8.
            labels: (N,) 0..K-1.
            devices: (N,) 0..D-1, an index into ``device_ids``; every device has an image.
            device_ids: (D,).
            class_names: (K,).
            groups: (D,).
            reserved: (D,).
            meta: JSON values.
        """
        order = np.argsort(devices, kind="stable")
        counts = np.bincount(devices, minlength=len(device_ids))
        return cls(
            pixels=pixels if np.array_equal(order, np.arange(len(order))) else pixels[order],
            labels=np.asarray(labels, dtype=np.int64)[order],
            offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            device_ids=tuple(device_ids),
            class_names=tuple(class_names),
            groups=tuple(groups) if groups is not None else ("",) * len(device_ids),
            reserved=np.zeros(len(device_ids), bool) if reserved is None else np.asarray(reserved, dtype=bool),
            meta=dict(meta or {}),
        )

    @property
    def n_images(self) -> int:
        """N."""
        return len(self.labels)

    @property
    def n_devices(self) -> int:
        """D."""
        return len(self.device_ids)

    @property
    def n_classes(self) -> int:
        """K."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W), as hosts read images."""
        _, h, w, c = self.pixels.shape
        return c, h, w

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hex, over pixels, labels, devices and groups; ``meta`` does not count."""
        sha = hashlib.sha256(f"{FORMAT.name}|{self.pixels.shape}".encode())
        for array in (self.pixels, self.labels, self.offsets, self.reserved):
            sha.update(np.ascontiguousarray(array).data)
        for names in (self.device_ids, self.class_names, self.groups):
            sha.update("\0".join(names).encode())
        return sha.hexdigest()

    def device_of(self, positions: NDArray[np.integer]) -> Int64Array:
        """The device that each position belongs to: (P,) -> (P,)."""
        return np.searchsorted(self.offsets, positions, side="right").astype(np.int64) - 1

    def positions_of(self, devices: NDArray[np.integer]) -> Int64Array:
        """All positions of some devices, device by device, in stream order: (B,) -> (P,)."""
        parts = [np.arange(self.offsets[d], self.offsets[d + 1]) for d in devices]
        return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, np.int64)

    def tensor(self, positions: NDArray[np.integer]) -> Tensor:
        """The images at ``positions`` (P,) as hosts read them: (P, C, H, W) uint8."""
        import torch

        return torch.from_numpy(np.ascontiguousarray(self.pixels[positions].transpose(0, 3, 1, 2)))

    def label_tensor(self, positions: NDArray[np.integer]) -> Tensor:
        """The classes at ``positions``: (P,) int64."""
        import torch

        return torch.from_numpy(self.labels[positions])

    def with_pixels(self, pixels: UInt8Array, **meta: Any) -> DeviceImages:
        """The same stream with other pixels (N, H, W, C), as a corruption leaves it."""
        return replace(self, pixels=pixels, meta={**self.meta, **meta})

    def select(self, devices: NDArray[np.integer]) -> DeviceImages:
        """The data of some devices (B,) alone, in that order; classes keep their numbers."""
        positions = self.positions_of(devices)
        counts = (self.offsets[1:] - self.offsets[:-1])[devices]
        return DeviceImages.from_arrays(
            self.pixels[positions],
            self.labels[positions],
            np.repeat(np.arange(len(devices)), counts),
            device_ids=[self.device_ids[d] for d in devices],
            class_names=self.class_names,
            groups=[self.groups[d] for d in devices],
            reserved=self.reserved[devices],
            meta=self.meta,
        )

    def divided(self, size: int, seed: int) -> DeviceImages:
        """Every device as several of at most ``size`` images, drawn from it at random: for sources with few devices.

        The new devices are named ``<device>/<number>`` and belong to the group ``<device>``, so that a protocol over
        groups keeps all parts of a device together. Their stream order is the order of the draw.

        Raises:
            ConfigError: the size is below 1.
        """
        if size < 1:
            raise ConfigError(f"a device needs at least 1 image, not {size}")
        rng = np.random.default_rng([seed, 31])
        positions: list[Int64Array] = []
        devices: list[Int64Array] = []
        ids: list[str] = []
        groups: list[str] = []
        reserved: list[bool] = []
        for d, name in enumerate(self.device_ids):
            own = rng.permutation(np.arange(self.offsets[d], self.offsets[d + 1]))
            for part in np.array_split(own, -(-len(own) // size)):
                positions.append(part)
                devices.append(np.full(len(part), len(ids)))
                ids.append(f"{name}/{len(ids)}")
                groups.append(name)
                reserved.append(bool(self.reserved[d]))
        chosen = np.concatenate(positions)
        return DeviceImages.from_arrays(
            self.pixels[chosen],
            self.labels[chosen],
            np.concatenate(devices),
            device_ids=ids,
            class_names=self.class_names,
            groups=groups,
            reserved=reserved,
            meta={**self.meta, "divided": {"size": size, "seed": seed}},
        )

    def save(self, folder: str | Path) -> None:
        """Write the data into ``folder`` (safetensors and JSON), which appears at once or not at all.

        Raises:
            FormatError: ``folder`` exists and holds something else, which is left alone.
        """
        folder = Path(folder)
        FORMAT.check_target(folder)
        arrays = {name: getattr(self, name) for name in ("pixels", "labels", "offsets", "reserved")}
        header = {
            "format": FORMAT.name,
            "version": FORMAT.version,
            "digest": self.digest,
            "device_ids": self.device_ids,
            "class_names": self.class_names,
            "groups": self.groups,
            "meta": dict(self.meta),
        }
        with atomic_folder(folder) as new:
            (new / "images.safetensors").write_bytes(arrays_to_bytes(arrays, {}))
            write_json(new / FORMAT.header, header)

    @classmethod
    def load(cls, folder: str | Path) -> DeviceImages:
        """Read what ``save`` wrote.

        Raises:
            FormatError: the folder is missing, holds something else, is of another version, or is damaged.
        """
        folder = Path(folder)
        header = FORMAT.read(folder)
        path = folder / "images.safetensors"
        arrays, _ = arrays_from_bytes(read_file(path), str(path))
        try:
            data = cls(
                pixels=arrays["pixels"],
                labels=arrays["labels"],
                offsets=arrays["offsets"],
                device_ids=tuple(header["device_ids"]),
                class_names=tuple(header["class_names"]),
                groups=tuple(header["groups"]),
                reserved=arrays["reserved"],
                meta=header["meta"],
            )
            intact = data.digest == header["digest"]
        except (KeyError, TypeError, ValueError, DataError) as error:
            raise FormatError(f"{folder} is damaged ({error}): prepare the images again") from error
        if not intact:
            raise FormatError(f"{folder} is damaged (its digest does not fit its contents): prepare the images again")
        return data
