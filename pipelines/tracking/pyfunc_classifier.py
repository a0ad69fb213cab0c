"""The classifier as an MLflow model, from code: MLflow runs this file and gives it the bundle; nothing is unpickled.

Input: the last images of one device, uint8 (n, H, W, C), oldest first. Output: one row an image with its class, the probability of
that class, and the level that answered.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext


class ClassifierModel(PythonModel):
    """``vision.serving.classifier.Classifier`` behind MLflow's interface."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the bundle."""
        from vision.serving.classifier import Classifier

        self.classifier = Classifier.load(context.artifacts["bundle"])

    def predict(
        self, context: PythonModelContext, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Classify the images; parameter ``level`` (``edit``, ``basis``, ``prototype`` or ``host``)."""
        answer = self.classifier.classify(np.asarray(model_input), level=str((params or {}).get("level", "edit")))
        return pd.DataFrame(
            {
                "class": answer.classes,
                "probability": [max(row) for row in answer.probabilities],
                "level": answer.level,
                "fallback": answer.fallback,
            }
        )


set_model(ClassifierModel())
