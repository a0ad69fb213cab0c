"""Methods measured on the same rows, and their differences with intervals over units (users, devices).

A measured method is two files, so that a comparison that was interrupted goes on where it stopped:

    <folder>/<method>.safetensors   one number a unit and metric
    <folder>/<method>.json          summary, cost, training; written last

Shapes: U units.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from persona.bootstrap import SeedsInterval, paired_bootstrap_over_seeds
from persona.errors import ConfigError, DataError, check_known, nearest
from persona.storage import load_tensors, read_json, save_tensors, write_json

REFERENCE = "host"
UNITS = "units"


@dataclass(frozen=True)
class Measured:
    """One method on the test rows of one problem.

    Attributes:
        method: its name.
        summary: one number a metric.
        per_unit: (U,) values a metric, aligned with ``units``.
        units: (U,) int64 indices of users or devices.
        seconds: wall time of its own training.
        refresh_bytes: what a device receives when the method adapts it once.
        epochs: epochs of its own training.
        best_epoch: the epoch whose weights were kept; -1 if none beat the start.
        history: metrics of each epoch.
        refresh_seconds: seconds of computing that adapting once takes: of the processor for one device where each is
            adapted by itself, else of the training that adapts everybody; None where it was not measured.
        parameters: of the method beyond the host's; None where they were not counted.
        chosen: settings that validation data selected.
        body_bytes: of a host that every device has to fetch once before it is refreshed; 0 where it has that host.
    """

    method: str
    summary: dict[str, float]
    per_unit: dict[str, NDArray[np.float64]]
    units: NDArray[np.int64]
    seconds: float = 0.0
    refresh_bytes: int = 0
    epochs: int = 0
    best_epoch: int = -1
    history: Sequence[dict[str, float]] = ()
    refresh_seconds: float | None = None
    parameters: int | None = None
    chosen: Mapping[str, float] = field(default_factory=dict)
    body_bytes: int = 0

    def save(self, folder: Path) -> None:
        """Write the two files."""
        tensors = {f"metric/{name}": torch.from_numpy(values) for name, values in self.per_unit.items()}
        save_tensors(folder / f"{self.method}.safetensors", {UNITS: torch.from_numpy(self.units), **tensors}, {})
        values = {k: v for k, v in asdict(self).items() if k not in ("per_unit", UNITS)}
        write_json(folder / f"{self.method}.json", values)

    @classmethod
    def exists(cls, folder: Path, method: str) -> bool:
        """Whether ``method`` was measured in ``folder``."""
        return (folder / f"{method}.json").exists()

    @classmethod
    def load(cls, folder: Path, method: str) -> Measured:
        """Read what ``save`` wrote.

        Raises:
            DataError: the method was not measured there.
        """
        if not cls.exists(folder, method):
            raise DataError(f"{folder} has no result of {method!r}: run the evaluation of this method first")
        tensors, _ = load_tensors(folder / f"{method}.safetensors")
        units = tensors.pop(UNITS).numpy()
        per_unit = {name.removeprefix("metric/"): tensor.numpy() for name, tensor in tensors.items()}
        return cls(per_unit=per_unit, units=units, **read_json(folder / f"{method}.json"))


@dataclass(frozen=True)
class Row:
    """A method in a comparison: its metrics averaged over seeds, and their differences to the reference.

    Attributes:
        method: its name.
        metrics: mean over seeds.
        differences: to the reference, with intervals over units; empty for the reference itself.
        seconds: mean training time.
        refresh_bytes: bytes a device receives per refresh.
        refresh_seconds: mean over seeds, as in ``Measured``; None where a seed lacks it.
        parameters: beyond the host's.
        chosen: what validation chose, seed by seed.
        body_bytes: as in ``Measured``.
    """

    method: str
    metrics: dict[str, float]
    differences: dict[str, SeedsInterval]
    seconds: float
    refresh_bytes: int
    refresh_seconds: float | None = None
    parameters: int | None = None
    chosen: tuple[dict[str, float], ...] = ()
    body_bytes: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"differences": {name: d.as_dict() for name, d in self.differences.items()}}

    def gains(self, protocol: str) -> dict[str, float]:
        """Differences to the host with their intervals as single numbers, under names that say so."""
        found = {}
        for metric, difference in self.differences.items():
            name = f"{metric_name(protocol, metric)}_vs_host"
            found[name] = difference.interval.mean
            found[f"{name}_low"] = difference.interval.low
            found[f"{name}_high"] = difference.interval.high
        return found

    def logged(self, protocol: str) -> dict[str, float]:
        """All numbers of the method, as a run holds them."""
        cost = {"training_seconds": self.seconds, "refresh_bytes": float(self.refresh_bytes)}
        measured = {"refresh_seconds": self.refresh_seconds, "parameters": self.parameters}
        metrics = {metric_name(protocol, name): value for name, value in self.metrics.items()}
        return metrics | self.gains(protocol) | cost | {k: float(v) for k, v in measured.items() if v is not None}


def metric_name(protocol: str, metric: str) -> str:
    """The name under which ``metric`` is logged; the protocol is part of it: ``time/ndcg_10``.

    ``ndcg@10`` is taken as ``ndcg_10``. Raises ConfigError where MLflow would refuse the name.
    """
    name = f"{protocol}/{metric.replace('@', '_')}"
    if not re.fullmatch(r"[\w\-. :]+/[\w\-. :]+", name, re.ASCII):
        raise ConfigError(
            f"the metric name {name!r} cannot be logged: use letters, digits, '_', '-', '.', ':' and spaces in both parts"
        )
    return name


def is_own(method: str) -> bool:
    """Whether a method is Persona or one of its forms; ``personal``, a user's own counts, is none."""
    return method == "persona" or method.startswith("persona_")


def labelled(
    protocol: str, measured: Mapping[str, Measured], metrics: Collection[str]
) -> dict[str, NDArray[np.float64]]:
    """(U,) values of some metrics by whole names; labels of what was measured stand behind the protocol, an empty one adds nothing.

    Example::

        labelled("time", {"": whole, "prototype": alone}, ("ndcg_10",))  # time/ndcg_10, time prototype/ndcg_10
    """
    return {
        metric_name(f"{protocol} {label}".strip(), metric): found.per_unit[metric]
        for label, found in measured.items()
        for metric in metrics
        if metric in found.per_unit
    }


def with_host(methods: Sequence[str], known: Collection[str], rivals: Collection[str] = ()) -> list[str]:
    """The methods asked for, all that are known if none, each once, with the host as their reference and ``rivals`` behind it.

    Raises:
        ConfigError: a name is unknown.
    """
    for name in methods:
        check_known("method", name, known)
    chosen = list(dict.fromkeys(methods)) or list(known)
    if REFERENCE not in chosen:
        chosen.insert(0, REFERENCE)
    behind = chosen.index(REFERENCE) + 1
    chosen[behind:behind] = [name for name in rivals if name not in chosen]
    return chosen


def compare(seeds: Sequence[Mapping[str, Measured]], reference: str = REFERENCE) -> list[Row]:
    """Compare methods over seeds.

    Args:
        seeds: for every seed, the methods by name; all seeds have the same methods and test units.
        reference: the method that the others are compared with.

    Raises:
        ConfigError: the reference is not among the methods.
        DataError: there are no seeds, or they have different methods or test units, or fewer than two units.
    """
    if not seeds:
        raise DataError("there is nothing to compare: measure at least one seed")
    methods = list(seeds[0])
    if reference not in methods:
        raise ConfigError(f"the reference {reference!r} was not measured: {nearest(reference, methods)}")
    if any(list(seed) != methods for seed in seeds):
        raise DataError("the seeds were measured with different methods: evaluate all of them with the same methods")
    return [_row([seed[name] for seed in seeds], [seed[reference] for seed in seeds]) for name in methods]


def differences(a: Sequence[Measured], b: Sequence[Measured]) -> dict[str, SeedsInterval]:
    """For each metric, method ``a`` minus method ``b``, both given seed by seed, with its interval over units.

    Raises:
        DataError: not all were measured on the same units, or on fewer than two.
    """
    for measured in (*a, *b):
        if not np.array_equal(measured.units, a[0].units):
            raise DataError(f"{a[0].method} and {b[0].method} were tested on different units: evaluate all seeds again")
    return {
        metric: paired_bootstrap_over_seeds(
            [x.per_unit[metric] - y.per_unit[metric] for x, y in zip(a, b, strict=True)]
        )
        for metric in a[0].per_unit
    }


def _row(measured: list[Measured], reference: list[Measured]) -> Row:
    own = measured[0]
    refreshes = [m.refresh_seconds for m in measured if m.refresh_seconds is not None]
    return Row(
        method=own.method,
        metrics={k: float(np.mean([m.summary[k] for m in measured])) for k in own.summary},
        differences={} if own.method == reference[0].method else differences(measured, reference),
        seconds=float(np.mean([m.seconds for m in measured])),
        refresh_bytes=own.refresh_bytes,
        refresh_seconds=float(np.mean(refreshes)) if len(refreshes) == len(measured) else None,
        parameters=own.parameters,
        chosen=tuple(dict(m.chosen) for m in measured),
        body_bytes=own.body_bytes,
    )
