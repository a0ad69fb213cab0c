"""A small classifier, hardly trained, with an editor whose heads do something and two prototypes."""

from __future__ import annotations

from pathlib import Path

from tests.vision.common import awake_release, toy_images

DATA = toy_images(devices=8, per_device=6, classes=3, size=16)


def write_classifier(folder: Path) -> Path:
    awake_release(DATA).compile().save(folder)
    return folder
