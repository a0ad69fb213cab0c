"""When a device asks for a new edit: as soon as its context has drifted far enough from the one of its last edit.

The device decides alone. It knows a summary s of its context (a few averages of item embeddings, an output of the host's
graph). Coordinates c = (s - mean) A are fitted in the cloud so that distances between coordinates predict distances between
the edits that the editor would send (ridge regression from summaries to edits); the device asks when

    || c(now) - c(at its last request) || > threshold

and always for its first edit. The threshold is calibrated on training contexts to a wanted rate of requests.

Shapes: N contexts, S summary width, M coordinates, P edit coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from persona.arrays import Floats, arrays_from_bytes, arrays_to_bytes
from persona.errors import ConfigError, DataError, FormatError

FORMAT, FORMAT_VERSION = "request policy", 1
# Of the variance of a summary's entries: enough to tame entries that rarely vary.
RIDGE = 1e-3
# Share of the predicted edits' variance that coordinates have to keep.
KEPT = 0.999
_STEPS = 30

Doubles = NDArray[np.float64]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class RequestPolicy:
    """Asks for an edit when the context has drifted.

    Attributes:
        mean: (S,) summary of an average context.
        projection: (S, M) summaries -> coordinates.
        threshold: distance beyond which to ask.
        rate: requests an event that the threshold was calibrated to.

    Example::

        here = policy.coordinates(outputs.arrays["summary"][0])
        if policy.wants(here, last):
            message, last = ask_the_cloud(), here
    """

    mean: Floats
    projection: Floats
    threshold: float = 0.0
    rate: float = 1.0

    def coordinates(self, summary: NDArray[np.floating]) -> Floats:
        """Summaries (..., S) -> coordinates (..., M)."""
        return ((summary - self.mean) @ self.projection).astype(np.float32)

    def wants(self, here: Floats, last: Floats | None) -> bool:
        """Whether to ask now.

        Args:
            here: (M,) coordinates of the context.
            last: those of the last edit that was asked for; ``None`` if there was none.
        """
        return last is None or float(np.linalg.norm(here - last)) > self.threshold

    def calibrated(self, coordinates: Floats, first: NDArray[np.bool_], rate: float) -> RequestPolicy:
        """The policy whose threshold gives ``rate`` requests an event on these contexts, or the next fewer.

        Args:
            coordinates: (N, M) of the contexts at successive events, device after device.
            first: (N,) True at each device's first event, at which it asks in any case.
            rate: wanted share of events at which devices ask, in (0, 1].

        Raises:
            ConfigError: the rate is not in (0, 1].
            DataError: there are no contexts.
        """
        if not 0 < rate <= 1:
            raise ConfigError(f"a request rate is a share of events in (0, 1], not {rate}")
        if not len(coordinates):
            raise DataError("there are no contexts to calibrate the request policy on: give training data")
        low, high = 0.0, float(np.linalg.norm(np.ptp(coordinates, axis=0))) + 1e-6
        for _ in range(_STEPS):
            middle = (low + high) / 2
            asked = requests(coordinates, first, middle)
            if float(asked.mean()) > rate:
                low = middle
            else:
                high = middle
        return replace(self, threshold=0.0 if rate == 1 else high, rate=rate)

    def to_bytes(self) -> bytes:
        """The policy as a safetensors message."""
        header = {"format": FORMAT, "version": FORMAT_VERSION, "threshold": self.threshold, "rate": self.rate}
        return arrays_to_bytes({"mean": self.mean, "projection": self.projection}, header)

    @classmethod
    def from_bytes(cls, data: bytes) -> RequestPolicy:
        """Inverse of ``to_bytes``.

        Raises:
            FormatError: the bytes are damaged or of another version.
        """
        arrays, header = arrays_from_bytes(data, "the request policy")
        if header.get("format") != FORMAT or header.get("version") != FORMAT_VERSION:
            raise FormatError(f"this is no request policy of version {FORMAT_VERSION}: export the bundle again")
        try:
            return cls(arrays["mean"], arrays["projection"], float(header["threshold"]), float(header["rate"]))
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"the request policy lacks {error}: export the bundle again") from error


def requests(coordinates: Floats, first: NDArray[np.bool_], threshold: float) -> NDArray[np.bool_]:
    """(N, M) and (N,) -> (N,) whether each device asks at each event, as ``RequestPolicy.wants`` decides in turn."""
    asked = np.array(first, dtype=bool)
    starts = np.flatnonzero(asked)
    for start, stop in zip(starts, [*starts[1:], len(asked)], strict=True):
        last = start
        # The next event that is too far from the last request: all later ones are measured at once.
        while last + 1 < stop:
            far = np.linalg.norm(coordinates[last + 1 : stop] - coordinates[last], axis=1) > threshold
            if not far.any():
                break
            last = last + 1 + int(far.argmax())
            asked[last] = True
    return asked


def source_rows(asked: NDArray[np.bool_]) -> Rows:
    """(N,) requests, True at each device's first event -> (N,) the event whose edit each event is answered with."""
    return np.maximum.accumulate(np.where(asked, np.arange(len(asked)), 0))


def fit_policy(summaries: NDArray[np.floating], edits: NDArray[np.floating]) -> RequestPolicy:
    """Coordinates in which distances predict those between edits; the threshold is yet to be calibrated.

    Args:
        summaries: (N, S) of training contexts.
        edits: (N, P) coordinates of their edits, in which distances are those of the edits.

    Raises:
        DataError: there are no contexts.
    """
    if not len(summaries):
        raise DataError("there are no contexts to fit the request policy on: give training data")
    mean = summaries.astype(np.float64).mean(0)
    x, y = summaries - mean, edits - edits.astype(np.float64).mean(0)
    moment = x.T @ x
    ridge = RIDGE * max(float(np.trace(moment)) / len(moment), 1e-12)
    solved = np.linalg.solve(moment + ridge * np.eye(len(moment)), x.T @ y)
    return RequestPolicy(mean.astype(np.float32), _principal(x, solved).astype(np.float32))


def plain_policy(summaries: NDArray[np.floating], columns: Sequence[int] | slice) -> RequestPolicy:
    """Distances between some columns of the summaries themselves: what a fitted policy has to beat."""
    mean = summaries.astype(np.float32).mean(0)
    return RequestPolicy(mean, np.eye(len(mean), dtype=np.float32)[:, columns])


def _principal(x: Doubles, solved: Doubles) -> Doubles:
    """(S, P) -> (S, M): the fewest directions of the predicted edits that keep ``KEPT`` of their variance."""
    predicted = x @ solved
    energy, vectors = np.linalg.eigh(predicted.T @ predicted)
    energy, vectors = energy[::-1].clip(0), vectors[:, ::-1]
    share = np.cumsum(energy) / max(float(energy.sum()), float(np.finfo(np.float64).tiny))
    count = int(np.searchsorted(share, KEPT)) + 1
    kept: Doubles = solved @ vectors[:, :count]
    return kept
