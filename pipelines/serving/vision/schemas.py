"""What the classifier takes and gives over HTTP."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipelines.serving.servable import VersionedAnswer

MOST_IMAGES = 64
Level = Literal["host", "prototype", "basis", "edit"]
Image = Annotated[str, Field(max_length=1 << 20, description="A PNG, JPEG or other image file, in base64.")]


class _Images(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    images: list[Image] = Field(min_length=1, max_length=MOST_IMAGES, description="Of one device, oldest first.")


class ClassificationRequest(_Images):
    """A device's recent images."""

    level: Level = Field(default="edit", description="How far to personalise.")


class DeviceEditRequest(_Images):
    """A device's recent images, and how much of their edit it takes."""

    level: Literal["prototype", "basis", "full"] = Field(default="basis")
    host: str | None = Field(default=None, max_length=64, description="Digest of the device's host.")


class ClassificationAnswer(VersionedAnswer):
    """Classes, and what made them."""

    classes: list[str] = Field(description="The likeliest class of each image.")
    names: list[str] = Field(description="All classes, in the order of the probabilities.")
    probabilities: list[list[float]]
    level: Level
    fallback: str = Field(description="Why a lower level answered than was asked for, empty if none did.")
    prototype: int | None
    edit_norm: float


class DeviceEditAnswer(VersionedAnswer):
    """What a device applies."""

    level: Literal["host", "prototype", "basis", "full"]
    fallback: str
    prototype: int | None
    message: str = Field(description="In base64: what `persona.device` reads.")
    bytes: int = Field(description="Length of the message.")


Pixel = Annotated[float, Field(ge=0, le=255)]
Rows = Annotated[
    list[list[list[list[Pixel]]]],
    Field(max_length=MOST_IMAGES, description="Pixels, whole numbers: image, height, width, channel."),
]


class ScoringParameters(BaseModel):
    """Parameters of the model's signature."""

    model_config = ConfigDict(extra="forbid", strict=True)

    level: Level = "edit"


class Scoring(BaseModel):
    """The two ways in which MLflow sends a tensor."""

    model_config = ConfigDict(extra="forbid", strict=True)

    inputs: Rows | None = None
    instances: Rows | None = None
    params: ScoringParameters = ScoringParameters()


class PixelsRequest(BaseModel):
    """A device's recent images as pixels, from MLflow's protocol."""

    pixels: Any
    level: Level


class ImagePrediction(BaseModel):
    """The answer for one image, as the registered model gives it."""

    model_config = ConfigDict(populate_by_name=True)

    name: str = Field(alias="class")
    probability: float
    level: Level
    fallback: str


class Predictions(BaseModel):
    """Answers in the order of the images."""

    predictions: list[ImagePrediction]


SCORING_EXAMPLES: dict[str, dict[str, Any]] = {"no image": {"inputs": [], "params": {"level": "prototype"}}}
# A white square on black.
_PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAAAAADhZOFXAAAAG0lEQVR42mNgQAeMDAz/GRgYGBmYYCKYDEwAADRSAQiRgurpAAAAAElFTkSuQmCC"
)
CLASSIFICATION_EXAMPLES: dict[str, dict[str, Any]] = {"one image": {"images": [_PNG], "level": "edit"}}
DEVICE_EDIT_EXAMPLES: dict[str, dict[str, Any]] = {"a small message": {"images": [_PNG], "level": "basis"}}
