"""What the recommender takes and gives over HTTP."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from pipelines.serving.servable import VersionedAnswer

MOST_ITEMS = 1000
MOST_HISTORIES = 256
MOST_ANSWERS = 100


def _whole(value: Any) -> Any:
    """42.0 is an integer of JSON, as 42 is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, Field(ge=-(2**63), le=2**63 - 1), BeforeValidator(_whole)]
Count = Annotated[int, Field(ge=1, le=MOST_ANSWERS), BeforeValidator(_whole)]
Id = Annotated[str, Field(max_length=256)] | Whole
History = Annotated[
    list[Id],
    Field(max_length=MOST_ITEMS, description="Item ids, oldest first. Unknown ones are skipped, and reported."),
]
Level = Literal["host", "prototype", "basis", "edit"]
EditLevel = Literal["prototype", "basis", "full"]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class RecommendationRequest(_Request):
    """A device's recent items, and what is wanted for them."""

    history: History
    k: Count = Field(default=10, description="How many items.")
    level: Level = Field(default="edit", description="How far to personalise.")
    exclude: list[Id] = Field(default=[], max_length=MOST_ITEMS, description="Ids that must not be recommended.")
    only: list[Id] | None = Field(default=None, max_length=MOST_ITEMS, description="Recommend none but these.")
    seen: bool | None = Field(
        default=None, description="Whether items of the history may be recommended again; by default as the model says."
    )


class EditRequest(_Request):
    """A device's recent items, and how much of their edit it takes."""

    history: History
    level: EditLevel = Field(
        default="basis", description="prototype: one byte; basis: at most 64 bytes; full: every number."
    )
    host: str | None = Field(
        default=None, max_length=64, description="Digest of the device's host; another one is refused."
    )
    bank: str | None = Field(
        default=None, max_length=64, description="Version of the device's bank; another one is refused."
    )


class AssignmentRequest(_Request):
    """Recent items of many devices."""

    histories: list[History] = Field(min_length=1, max_length=MOST_HISTORIES)


class RankedItem(BaseModel):
    """One recommended item."""

    id: str
    score: float = Field(description="Logit.")
    title: str | None


class RecommendationAnswer(VersionedAnswer):
    """Ranked items, and what made them."""

    items: list[RankedItem] = Field(description="Best first.")
    level: Level = Field(description="What answered.")
    fallback: str = Field(description="Why a lower level answered than was asked for, empty if none did.")
    prototype: int | None = Field(description="Nearest prototype.")
    distance: float | None = Field(description="Norm of the remaining edit from it.")
    edit_norm: float = Field(description="Norm of the edit that was applied, 0 at level host.")
    unknown: list[Id] = Field(description="Ids of the history that the catalogue does not have.")
    unread: int = Field(description="Known items of the history that are older than the model reads.")


class EditAnswer(VersionedAnswer):
    """What a device applies."""

    level: Literal["host", "prototype", "basis", "full"] = Field(description="What was made; host: nothing to apply.")
    fallback: str = Field(description="Why it is lower than was asked for, empty if it is not.")
    prototype: int | None
    distances: list[float] = Field(description="Norm of the remaining edit from every prototype.")
    edit_norm: float = Field(description="Norm of the bounded edit.")
    coefficients: list[float] = Field(description="At level basis: the remaining edit along the bank's directions.")
    layers: dict[str, dict[str, list[list[float]]]] = Field(
        description="At level full: weight (in x out) and bias (1 x out) of every layer, before the bound."
    )
    message: str = Field(description="The same as bytes, in base64: what `persona.device` reads.")
    bytes: int = Field(description="Length of the message.")


class Assignment(BaseModel):
    """Where one device belongs."""

    prototype: int | None = Field(description="Nearest prototype; null if the history has no known item.")
    distance: float | None = Field(description="Norm of the remaining edit from it.")
    known: int = Field(description="Items of the history that the catalogue has.")


class AssignmentAnswer(VersionedAnswer):
    """Where the devices belong, in their order."""

    assignments: list[Assignment]


RECOMMENDATION_EXAMPLES = {
    "personalised": {"history": ["1193", "661", "914"], "k": 10},
    "the host alone": {"history": ["1193", "661", "914"], "k": 10, "level": "host"},
    "some of them": {"history": [1193, 661], "only": ["595", "938", "2398"], "seen": True},
}
EDIT_EXAMPLES = {
    "a message of at most 64 bytes": {"history": ["1193", "661", "914"], "level": "basis"},
    "one byte": {"history": ["1193", "661", "914"], "level": "prototype"},
}
ASSIGNMENT_EXAMPLES = {"two devices": {"histories": [["1193", "661"], ["914"]]}}
