"""Metrics of classification under device shift, per device and pooled.

A method is judged by what it does for the next device, so the headline is the mean over devices; intervals resample devices.

Letters: P images, K classes, U distinct devices; results per device are aligned with ``np.unique(devices)``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from persona.errors import DataError

BINS = 15
# The devices that "worst" speaks of.
WORST = 0.1

Floats = NDArray[np.floating]


def per_device(
    logits: Floats, labels: NDArray[np.integer], devices: NDArray[np.integer]
) -> dict[str, NDArray[np.float64]]:
    """Metrics of every device, for intervals over devices.

    Args:
        logits: (P, K).
        labels: (P,) 0..K-1.
        devices: (P,) the device of every image.

    Returns:
        Arrays (U,): ``accuracy``, and ``logloss``, the mean negative log-likelihood in nats.

    Raises:
        DataError: no images, shapes that do not fit, or logits that are not finite.
    """
    scores = _checked(logits, labels, devices)
    _, inverse, counts = np.unique(devices, return_inverse=True, return_counts=True)
    correct = (scores.argmax(1) == labels).astype(np.float64)
    loss = -_log_softmax(scores)[np.arange(len(labels)), labels]
    return {
        "accuracy": np.bincount(inverse, correct) / counts,
        "logloss": np.bincount(inverse, loss) / counts,
    }


def summary(logits: Floats, labels: NDArray[np.integer], devices: NDArray[np.integer]) -> dict[str, float]:
    """The headline numbers of one method.

    Returns:
        ``accuracy`` and ``logloss``, means over devices; ``accuracy_worst``, the mean accuracy of the worst tenth of the
        devices (at least one); ``accuracy_pooled`` over all images; ``ece`` over all images.
    """
    own = per_device(logits, labels, devices)
    worst = np.sort(own["accuracy"])[: max(1, round(WORST * len(own["accuracy"])))]
    return {
        "accuracy": float(own["accuracy"].mean()),
        "accuracy_worst": float(worst.mean()),
        "accuracy_pooled": float((logits.argmax(1) == labels).mean()),
        "logloss": float(own["logloss"].mean()),
        "ece": expected_calibration_error(logits, labels),
    }


def expected_calibration_error(logits: Floats, labels: NDArray[np.integer], bins: int = BINS) -> float:
    """How far confidence lies from accuracy, in equal-width bins of confidence.

        ECE = sum_m |B_m| / P * |accuracy(B_m) - confidence(B_m)|,

    where bin m holds the images whose highest softmax probability lies in ((m - 1) / M, m / M].

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML'17, equation 3, with M = 15.

    Args:
        logits: (P, K).
        labels: (P,).
        bins: M.
    """
    probabilities = np.exp(_log_softmax(np.asarray(logits, dtype=np.float64)))
    confidence = probabilities.max(1)
    correct = probabilities.argmax(1) == labels
    index = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gap = np.bincount(index, correct - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(labels))


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)), dtype=np.float64)


def _checked(given: Floats, labels: NDArray[np.integer], devices: NDArray[np.integer]) -> NDArray[np.float64]:
    logits: NDArray[np.float64] = np.asarray(given, dtype=np.float64)
    if logits.ndim != 2 or not len(logits) or labels.shape != devices.shape or labels.shape != (len(logits),):
        raise DataError(
            f"metrics need logits (P, K), labels (P,) and devices (P,) of at least one image, got {logits.shape}, "
            f"{labels.shape} and {devices.shape}"
        )
    broken = ~np.isfinite(logits).all(1)
    if broken.any():
        raise DataError(
            f"{broken.sum()} of {len(logits)} images have logits that are not finite, the first is image "
            f"{broken.argmax()}: the model has diverged, lower the learning rate"
        )
    return logits
