"""MLflow's scoring protocol, so that what asks `mlflow models serve` can ask this service: /invocations, /ping, /version."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipelines.serving.recsys.schemas import Count, History, Level, RecommendationRequest, Whole

INVOCATIONS = "/invocations"
MOST_ROWS = 256


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Parameters(_Strict):
    """Parameters of the model's signature."""

    k: Count = 10
    level: Level = "edit"
    seen: bool | None = None


class Record(_Strict):
    """One row."""

    history: History


class Split(_Strict):
    """Rows under a list of columns."""

    columns: Annotated[list[Literal["history"]], Field(min_length=1, max_length=1)]
    data: list[Annotated[list[History], Field(min_length=1, max_length=1)]] = Field(max_length=MOST_ROWS)
    index: list[Whole | str] | None = None


class Column(_Strict):
    """Rows as one column."""

    history: list[History] = Field(max_length=MOST_ROWS)


Records = Annotated[list[Record], Field(max_length=MOST_ROWS)]


class Scoring(_Strict):
    """One of MLflow's four ways to send rows."""

    dataframe_split: Split | None = None
    dataframe_records: Records | None = None
    inputs: Column | Records | None = None
    instances: Column | Records | None = None
    params: Parameters = Parameters()

    def histories(self) -> list[History]:
        """The rows, in whatever way they came; none if they came in none."""
        if self.dataframe_split is not None:
            return [row[0] for row in self.dataframe_split.data]
        rows = self.dataframe_records or self.inputs or self.instances or []
        return rows.history if isinstance(rows, Column) else [row.history for row in rows]

    def requests(self) -> list[RecommendationRequest]:
        """One request a row."""
        asked = self.params.model_dump()
        return [RecommendationRequest(history=history, **asked) for history in self.histories()]


class Prediction(BaseModel):
    """The answer for one row, as the registered model gives it."""

    items: list[str]
    scores: list[float]
    titles: list[str]
    level: Level
    fallback: str


class Predictions(BaseModel):
    """Answers in the order of the rows."""

    predictions: list[Prediction]


EXAMPLES: dict[str, dict[str, Any]] = {
    "split": {"dataframe_split": {"columns": ["history"], "data": [[["1193", "661", "914"]]]}, "params": {"k": 5}},
    "records": {"dataframe_records": [{"history": ["1193", "661", "914"]}]},
    "inputs": {"inputs": {"history": [["1193", "661"], ["914"]]}},
}


def prediction(answer: dict[str, Any]) -> dict[str, Any]:
    """A recommendation as one row of the registered model's answer."""
    items = answer["items"]
    return {
        "items": [item["id"] for item in items],
        "scores": [item["score"] for item in items],
        "titles": [item["title"] or "" for item in items],
        "level": answer["level"],
        "fallback": answer["fallback"],
    }
