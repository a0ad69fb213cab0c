"""The classifier as a service answers with it: classes of images, edits for devices."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI
from numpy.typing import NDArray
from pydantic import BaseModel

from persona.answering import HOST, lacking
from persona.errors import FormatError
from pipelines.serving.banks import bank_message, told_of_bank
from pipelines.serving.edits import Made, conflict, make_edits, serving_level
from pipelines.serving.errors import Refusal
from pipelines.serving.servable import Operation, Reply, Service, Versions
from pipelines.serving.vision import routes
from pipelines.serving.vision.schemas import (
    CLASSIFICATION_EXAMPLES,
    DEVICE_EDIT_EXAMPLES,
    ClassificationAnswer,
    ClassificationRequest,
    DeviceEditAnswer,
    DeviceEditRequest,
    PixelsRequest,
)
from vision.serving.classifier import Classifier


class ClassifierTask:
    """Bundles of ``vision``."""

    body_bytes = 1 << 24
    operations = (
        Operation(
            "/v1/classifications",
            ClassificationRequest,
            ClassificationAnswer,
            "Classify images",
            "Images of one device in, their classes out, under the edit that they ask for together.",
            CLASSIFICATION_EXAMPLES,
        ),
        Operation(
            "/v1/edits",
            DeviceEditRequest,
            DeviceEditAnswer,
            "Make an edit for a device",
            "Images in, edit out: as JSON, or with `Accept: application/octet-stream` as the message alone.",
            DEVICE_EDIT_EXAMPLES,
            binary=True,
            conflicts=True,
        ),
    )

    def extend(self, api: FastAPI, service: Service) -> None:
        """Examples, MLflow's scoring protocol, the page."""
        routes.add(api, service)

    def load(self, folder: Path, name: str, version: str) -> ClassifierServable:
        """Read the compiled part of a bundle; torch is not loaded."""
        return ClassifierServable(Classifier.load(folder), name, version, folder)


class ClassifierServable:
    """One version of the classifier; a device's images are a batch already, so requests are answered one by one."""

    rows = 1

    def __init__(self, classifier: Classifier, name: str, version: str, folder: Path) -> None:
        self.classifier = classifier
        self.bank_message = bank_message(folder, classifier.bank)
        self.versions = Versions(name, version, classifier.host, classifier.bank)

    def answer(self, requests: Sequence[BaseModel]) -> list[Reply | Exception]:
        """Every request by itself."""
        return [self._one(request) for request in requests]

    def check(self) -> None:
        """Classify a grey image.

        Raises:
            FormatError: the answer is not finite.
        """
        channels, height, width = self.classifier.image_shape
        answer = self.classifier.classify(np.full((1, height, width, channels), 128, dtype=np.uint8))
        if not np.isfinite(answer.probabilities).all():
            raise FormatError("the probabilities of this bundle are not finite: release it again")

    def prototypes(self) -> dict[str, Any] | None:
        """Members, norms and lineage of the bank."""
        return told_of_bank(self.classifier.tables, self.versions.as_dict())

    def examples(self) -> list[dict[str, Any]]:
        """The names of the classes, drawn as several devices could show them: ``name`` and ``images`` in base64."""
        from pipelines.serving.vision.drawn import drawn_streams

        streams = drawn_streams(self.classifier.class_names, self.classifier.image_shape)
        return [
            {"name": name, "images": [base64.b64encode(file).decode() for file in files]} for name, files in streams
        ]

    def _one(self, request: BaseModel) -> Reply | Exception:
        try:
            if isinstance(request, ClassificationRequest):
                return self._classify(self._pixels(request.images), request.level)
            if isinstance(request, PixelsRequest):
                return self._classify(self._given(request.pixels), request.level)
            assert isinstance(request, DeviceEditRequest)
            return self._edit(request)
        except Refusal as refusal:
            return refusal

    def _classify(self, pixels: NDArray[np.uint8], level: str) -> Reply:
        found = self.classifier.classify(pixels, level=level)
        return Reply(
            {
                "classes": found.classes,
                "names": self.classifier.class_names,
                "probabilities": found.probabilities,
                "level": found.level,
                "fallback": found.fallback,
                "prototype": found.prototype,
                "edit_norm": found.edit_norm,
                **self.versions.as_dict(),
            }
        )

    def _edit(self, request: DeviceEditRequest) -> Reply:
        refused = conflict(self.versions, request.host, None)
        if refused is not None:
            raise refused
        tables = self.classifier.tables
        missing = lacking(tables, serving_level(request.level))
        if missing or tables is None:
            return self._made(Made(HOST, missing))
        contexts = self.classifier.contexts(self._pixels(request.images))
        return self._made(make_edits(tables, contexts, [request.level], self.classifier.model.full_message)[0])

    def _made(self, made: Made) -> Reply:
        content = {
            "level": made.level,
            "fallback": made.fallback,
            "prototype": made.prototype,
            "bytes": len(made.message),
            "message": base64.b64encode(made.message).decode(),
        }
        return Reply(content | self.versions.as_dict(), made.message)

    def _pixels(self, images: Sequence[str]) -> NDArray[np.uint8]:
        """Pixels (n, H, W, C) of image files in base64, stretched to the host's size.

        Raises:
            Refusal: one of them is no image.
        """
        from vision.data.sources.decode import UnreadableImage, decode

        channels, height, width = self.classifier.image_shape
        pixels = []
        for i, image in enumerate(images):
            try:
                pixels.append(decode(base64.b64decode(image, validate=True), (height, width, channels)))
            except (binascii.Error, ValueError, UnreadableImage):
                raise Refusal(422, "invalid", f"images.{i}: no image file in base64 that can be read") from None
        return np.stack(pixels)

    def _given(self, rows: Any) -> NDArray[np.uint8]:
        """Pixels (n, H, W, C) as they came, which have to be of the host's size.

        Raises:
            Refusal: they are not, or no whole numbers.
        """
        channels, height, width = self.classifier.image_shape
        wanted = f"pixels have to be whole numbers of shape (images, {height}, {width}, {channels})"
        try:
            pixels = np.array(rows, dtype=np.float64)
        except ValueError:  # rows of different lengths
            raise Refusal(422, "invalid", wanted) from None
        if pixels.shape[1:] != (height, width, channels) or (pixels != np.rint(pixels)).any():
            raise Refusal(422, "invalid", wanted)
        return pixels.astype(np.uint8)
