"""Two versions side by side: which is better, for whom, and what changed. Task-free, like the snapshots it reads.

    A, B ──> Side (settings, metrics, snapshot, bank) ──> Difference ──> terminal, JSON, MLflow tables, one HTML page

Differences are B minus A; a gain is in the direction of better. Values per user or device have intervals where both versions
were tested on the same rows; where they were not, only their plain metrics are shown, and that is said.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from persona.bootstrap import Interval, bootstrap_mean
from persona.errors import ConfigError, MismatchError
from persona.prototypes import PrototypeBank, load_bank
from pipelines.tracking import store
from pipelines.versions import names as versions
from pipelines.versions import promotion_gate, snapshots
from pipelines.versions.difference import UNDECIDED, Difference, Example, Gain, Movement, Moves, Shift, verdict
from pipelines.versions.names import Version
from pipelines.versions.promotion_gate import OTHER
from pipelines.versions.snapshots import INPUT, ITEM, PROTOTYPE, RANK, SEGMENT, TITLE, UNIT, Snapshot

if TYPE_CHECKING:
    from mlflow import MlflowClient

ITEMS_SHOWN = 10
EXAMPLES_SHOWN = 5
SETTINGS_SHOWN = 40
# Of fewer units a bootstrap interval says too little to decide on.
FEWEST = 10


@dataclass(frozen=True)
class Side:
    """One of the two that are compared.

    Attributes:
        label: as people call it, for example ``persona-recsys-movielens-small/3``.
        run_id: the run that made it.
        settings: parameters of that run.
        metrics: over all units.
        tags: of the version; empty for a run.
        aliases: of the version.
        snapshot: values per unit, if it left them.
        bank: prototypes, if it has any.
    """

    label: str
    run_id: str
    settings: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    snapshot: Snapshot | None = None
    bank: PrototypeBank | None = None


def sides(client: MlflowClient, a: str, b: str) -> tuple[Side, Side]:
    """Two versions, aliases or runs by their names, with their snapshots.

    Raises:
        As ``side``.
    """
    one, other = (
        replace(found, snapshot=snapshots.of_run(client, found.run_id)) for found in (side(client, a), side(client, b))
    )
    return one, other


def side(client: MlflowClient, name: str) -> Side:
    """A version, alias or run by its name, without its snapshot.

    Raises:
        ConfigError: nothing has that name.
        FormatError: its bank or snapshot is damaged.
    """
    if re.fullmatch(r"(runs:/)?[0-9a-f]{32}", name):
        return _of_run(client, name.removeprefix("runs:/"))
    version = versions.resolve(client, name)
    settings = client.get_run(version.run_id).data.params if version.run_id else {}
    return Side(
        label=str(version),
        run_id=version.run_id,
        settings=settings,
        metrics=versions.metrics_of(client, version),
        tags=version.tags,
        aliases=version.aliases,
        bank=bank_of(version),
    )


def _of_run(client: MlflowClient, run_id: str) -> Side:
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        raise ConfigError(
            f"there is no run {run_id} in {store.default_uri()}: copy its id from the MLflow UI"
        ) from error
    label = f"run {run.info.run_name} ({run_id[:8]})"
    return Side(label, run_id, run.data.params, run.data.metrics)


def bank_of(version: Version) -> PrototypeBank | None:
    """The bank that a version is, or that its bundle holds; None where there is none, or its files are gone.

    Raises:
        FormatError: it is damaged.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory() as temporary:
        try:
            folder = Path(mlflow.artifacts.download_artifacts(version.uri, dst_path=temporary))
        except (MlflowException, OSError):  # a version whose files are gone still has its numbers
            return None
        found = next(folder.rglob("bank.json"), None)
        return None if found is None else load_bank(found.parent)


def largest_movement(a: PrototypeBank, b: PrototypeBank) -> dict[str, float]:
    """How far the prototype that moved most left ``a``, by layer, as a share of the layer's own weights; empty if unknown."""
    movement = _movement(a, b, [])
    if movement is None:
        return {}
    return {layer: max(row[i] for row in movement.shares) for i, layer in enumerate(movement.layers)}


def compare(a: Side, b: Side) -> Difference:
    """What changed from ``a`` to ``b``."""
    remarks: list[str] = []
    difference: dict[str, Any] = {
        "settings": _changed_settings(a, b),
        "metrics": _plain_metrics(a, b),
        "movement": _movement(a.bank, b.bank, remarks),
    }
    both = _paired(a, b, remarks)
    if both is not None:
        assert a.snapshot is not None
        assert b.snapshot is not None
        names = [metric for metric in b.snapshot.metrics if metric in a.snapshot.metrics]
        difference |= {
            "overall": [_gain(both, metric, "") for metric in names],
            "segments": [
                _gain(both.filter(pl.col(SEGMENT) == segment), metric, segment)
                for metric in names
                for segment in b.snapshot.segments
            ],
            "moves": _moves(both),
            "causes": _causes(both, names),
        }
    if a.snapshot is not None and b.snapshot is not None:
        difference |= _answers(a.snapshot, b.snapshot, remarks)
    found = Difference(a.label, b.label, [], remarks, **difference)
    found.verdict.extend(verdict(found, b.snapshot.kind if b.snapshot else "unit"))
    return found


def _paired(a: Side, b: Side, remarks: list[str]) -> pl.DataFrame | None:
    """The units of both, B first; None, with a remark, where they cannot be paired."""
    for each in (a, b):
        if each.snapshot is None:
            remarks.append(f"{each.label} left no values per unit, so there are no intervals: release it again")
            return None
    assert a.snapshot is not None
    assert b.snapshot is not None
    try:
        promotion_gate.same_rows(b.snapshot, a.snapshot)
    except MismatchError as error:
        remarks.append(f"Differences have no intervals: {error}")
        return None
    return promotion_gate.paired(b.snapshot, a.snapshot)


def _gain(both: pl.DataFrame, metric: str, group: str) -> Gain:
    values = promotion_gate.gains(both, metric)
    mean = float(values.mean()) if len(values) else 0.0
    interval = bootstrap_mean(values) if len(values) > 1 else Interval(mean, mean, mean)
    better = UNDECIDED
    if len(values) >= FEWEST and interval.excludes_zero:
        better = "B" if interval.low > 0 else "A"
    mean_a, mean_b = (float(both[name].mean() or 0.0) for name in (f"{metric}{OTHER}", metric))  # type: ignore[arg-type]
    return Gain(metric, group, len(values), mean_a, mean_b, interval, better)


def _moves(both: pl.DataFrame) -> Moves | None:
    """None where a version has no prototypes."""
    known = both.drop_nulls([PROTOTYPE, f"{PROTOTYPE}{OTHER}"])
    if known.is_empty():
        return None
    new, old = known[PROTOTYPE].to_numpy(), known[f"{PROTOTYPE}{OTHER}"].to_numpy()
    flow = np.zeros((int(old.max()) + 1, int(new.max()) + 1), dtype=np.int64)
    np.add.at(flow, (old, new), 1)
    return Moves(int((new != old).sum()), len(known), flow.tolist())


def _causes(both: pl.DataFrame, names: Sequence[str]) -> list[Gain]:
    """Gains by what happened to the units: changed prototype, kept it, and by prototype of B."""
    known = both.drop_nulls([PROTOTYPE, f"{PROTOTYPE}{OTHER}"])
    if known.is_empty():
        return []
    moved = pl.col(PROTOTYPE) != pl.col(f"{PROTOTYPE}{OTHER}")
    groups = {"changed prototype": known.filter(moved), "kept their prototype": known.filter(~moved)}
    groups |= {f"are at prototype {j}": known.filter(pl.col(PROTOTYPE) == j) for j in sorted(known[PROTOTYPE].unique())}
    return [_gain(own, metric, group) for metric in names for group, own in groups.items() if len(own)]


def _movement(a: PrototypeBank | None, b: PrototypeBank | None, remarks: list[str]) -> Movement | None:
    """Every prototype of B against the one of A that it comes from: its origin in a parent, the nearest otherwise."""
    if a is None or b is None:
        return None
    if a.host != b.host:
        remarks.append("Prototypes cannot be compared: they are edits of different hosts")
        return None
    flat_a, flat_b = a.prototypes.flat().double(), b.prototypes.flat().double()
    distances = ((flat_b[:, None] - flat_a[None]) ** 2).sum(-1)
    origin = b.origin if b.parent == a.version else distances.argmin(1)
    moved = (b.prototypes - a.prototypes[origin]).layer_norms()
    specs = b.prototypes.specs
    norms = b.weight_scales.double() * np.sqrt([spec.out_features * spec.in_features for spec in specs])
    return Movement([spec.name for spec in specs], (moved / norms).tolist(), origin.tolist(), b.members.tolist())


def _answers(a: Snapshot, b: Snapshot, remarks: list[str]) -> dict[str, Any]:
    """Items that rose and fell, and examples, from the inputs that both versions answered."""
    keys = [UNIT, INPUT]
    shared = a.answers.select(keys).unique().join(b.answers.select(keys).unique(), on=keys)
    if shared.is_empty():
        if len(a.answers) and len(b.answers):
            remarks.append("No answers side by side: the two versions were asked about different inputs")
        return {}
    before, after = (s.answers.join(shared, on=keys).sort([*keys, RANK]) for s in (a, b))
    shifts = _shifts(before, after, len(shared))
    segment = dict(zip(b.units[UNIT], b.units[SEGMENT], strict=True))
    lists = zip(_lists(before).iter_rows(), _lists(after)["shown"], strict=True)
    examples = [Example(unit, segment.get(unit) or "", asked, old, new) for (unit, asked, old), new in lists]
    examples.sort(key=lambda example: (-len(example.new), example.unit))
    return {
        "risen": [shift for shift in shifts if shift.change > 0][:ITEMS_SHOWN],
        "fallen": [shift for shift in reversed(shifts) if shift.change < 0][:ITEMS_SHOWN],
        "examples": examples[:EXAMPLES_SHOWN],
    }


def _lists(answers: pl.DataFrame) -> pl.DataFrame:
    """One row an input, with what was shown for it, best first."""
    shown = pl.when(pl.col(TITLE).fill_null("") == "").then(pl.col(ITEM)).otherwise(pl.col(TITLE)).alias("shown")
    return answers.group_by([UNIT, INPUT], maintain_order=True).agg(shown)


def _shifts(before: pl.DataFrame, after: pl.DataFrame, inputs: int) -> list[Shift]:
    """Every item whose share of answers changed, the greatest rise first."""
    shares = [frame.group_by(ITEM).agg((pl.len() / inputs).alias("share")) for frame in (before, after)]
    titles = pl.concat([before, after]).select(ITEM, TITLE).unique(ITEM, keep="last", maintain_order=True)
    joined = (
        titles.join(shares[0], on=ITEM, how="left").join(shares[1], on=ITEM, how="left", suffix="_b").fill_null(0.0)
    )
    shifts = [
        Shift(row[ITEM], row[TITLE] or "", row["share"], row["share_b"])
        for row in joined.iter_rows(named=True)
        if row["share"] != row["share_b"]
    ]
    return sorted(shifts, key=lambda shift: (-shift.change, shift.item))


def _changed_settings(a: Side, b: Side) -> list[tuple[str, str, str]]:
    names = sorted(a.settings.keys() | b.settings.keys())
    both = [(name, a.settings.get(name, "-"), b.settings.get(name, "-")) for name in names]
    return [entry for entry in both if entry[1] != entry[2]][:SETTINGS_SHOWN]


def _plain_metrics(a: Side, b: Side) -> list[tuple[str, float | None, float | None]]:
    names = sorted(a.metrics.keys() | b.metrics.keys())
    return [(name, a.metrics.get(name), b.metrics.get(name)) for name in names]
