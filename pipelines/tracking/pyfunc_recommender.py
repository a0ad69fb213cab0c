"""The recommender as an MLflow model, from code: MLflow runs this file and gives it the bundle; nothing is unpickled.

Input: a column ``history`` with the item ids of each device, oldest first. Output: one row a device with the ids, scores and
titles of the best items, the level that answered, and why it is not the one asked for, if it is not.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext


class RecommenderModel(PythonModel):
    """``recsys.serving.recommender.Recommender`` behind MLflow's interface."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the bundle."""
        from recsys.serving.recommender import Recommender

        self.recommender = Recommender.load(context.artifacts["bundle"])

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Rank items for every row of ``model_input``; parameters ``k``, ``level`` (of ``persona.wire.LEVELS``) and ``seen``."""
        settings = params or {}
        answers = self.recommender.recommend_many(
            [list(history) for history in model_input["history"]],
            int(settings.get("k", 10)),
            level=str(settings.get("level", "edit")),
            seen=settings.get("seen"),
        )
        return pd.DataFrame(
            {
                "items": [[item.item_id for item in answer.items] for answer in answers],
                "scores": [[item.score for item in answer.items] for answer in answers],
                "titles": [[item.title or "" for item in answer.items] for answer in answers],
                "level": [answer.level for answer in answers],
                "fallback": [answer.fallback for answer in answers],
            }
        )


set_model(RecommenderModel())
