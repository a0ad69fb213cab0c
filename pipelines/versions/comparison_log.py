"""A comparison as it is shown: in the terminal, and in MLflow by metrics and tables, a page, JSON, and the verdict as a description."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipelines import tracking
from pipelines.console import Output
from pipelines.versions import pages
from pipelines.versions.comparing import Side
from pipelines.versions.difference import UNDECIDED, Difference, Gain

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "comparisons"
PAGE = "comparison.html"
# How the paragraph of a version's description begins that a comparison writes, in Markdown.
TOLD = "**Against"
# Shown by MLflow above a run.
NOTE_TAG = "mlflow.note.content"
METRICS_SHOWN = 12


def log(client: MlflowClient, a: Side, b: Side, difference: Difference) -> str:
    """Keep a comparison as a run, and tell it on the version that is ``b``.

    Returns:
        The id of the run.
    """
    kind = b.snapshot.kind if b.snapshot else "unit"
    tracking.connect(EXPERIMENT)
    tags = {"a": a.label, "b": b.label, "a.run": a.run_id, "b.run": b.run_id, NOTE_TAG: "\n\n".join(difference.verdict)}
    with tracking.run(f"{b.label} against {a.label}", tags=tags) as active:
        tracking.log_params(
            {"a": a.label, "b": b.label, "units": difference.overall[0].units if difference.overall else 0}
        )
        tracking.log_metrics_batch(metrics(difference))
        for name, rows in tables(difference).items():
            tracking.log_table(rows, f"tables/{name}.json")
        tracking.log_json(difference.as_dict(), "comparison.json")
        client.log_text(active.info.run_id, pages.comparison(difference, kind), PAGE)
    _tell(client, b.label, difference, active.info.run_id)
    return str(active.info.run_id)


def metrics(difference: Difference) -> dict[str, float]:
    """Every gain with its interval, and how much moved, under names that MLflow's pages group: ``time/light/ndcg_10_gain``."""
    found: dict[str, float] = {}
    for gain in (*difference.overall, *difference.segments):
        place, _, last = gain.metric.rpartition("/")
        name = "/".join(part for part in (place, gain.group, f"{last}_gain") if part)
        found |= {name: gain.gain.mean, f"{name}_low": gain.gain.low, f"{name}_high": gain.gain.high}
    if difference.moves is not None:
        found["moved"] = float(difference.moves.moved)
    if difference.movement is not None:
        for i, layer in enumerate(difference.movement.layers):
            found[f"movement/{layer}"] = max(row[i] for row in difference.movement.shares)
    return found


def tables(difference: Difference) -> Mapping[str, list[dict[str, Any]]]:
    """Rows for MLflow's table comparison, by name; those without rows are left out."""
    movement = difference.movement
    found = {
        "gains": [_row(gain) for gain in (*difference.overall, *difference.segments, *difference.causes)],
        "items": [
            {"item": shift.title or shift.item, "share A": shift.a, "share B": shift.b, "change": shift.change}
            for shift in (*difference.risen, *difference.fallen)
        ],
        "examples": list(_examples(difference)),
        "movement": []
        if movement is None
        else [
            {
                "prototype": j,
                "from": movement.origin[j],
                "members": movement.members[j],
                **dict(zip(movement.layers, row, strict=True)),
            }
            for j, row in enumerate(movement.shares)
        ],
    }
    return {name: rows for name, rows in found.items() if rows}


def _row(gain: Gain) -> dict[str, Any]:
    ends = {"gain": gain.gain.mean, "low": gain.gain.low, "high": gain.gain.high}
    return {
        "metric": gain.metric,
        "for": gain.group or "all",
        "how many": gain.units,
        "A": gain.a,
        "B": gain.b,
        **ends,
        "better": gain.better,
    }


def _examples(difference: Difference) -> Iterator[dict[str, Any]]:
    for example in difference.examples:
        for rank in range(max(len(example.before), len(example.after))):
            old, new = (shown[rank] if rank < len(shown) else "" for shown in (example.before, example.after))
            yield {
                "for": example.unit,
                "input": example.input,
                "rank": rank + 1,
                "A": old,
                "B": new,
                "new": new in example.new,
            }


def _tell(client: MlflowClient, label: str, difference: Difference, run_id: str) -> None:
    """Write the verdict where people look at a version; nothing for a run."""
    model, _, number = label.rpartition("/")
    if not model:
        return
    verdict = " ".join(difference.verdict)
    tags = {"compared.with": difference.a, "compared.verdict": verdict, "compared.run": run_id}
    for key, value in tags.items():
        client.set_model_version_tag(model, number, key, value)
    before = client.get_model_version(model, number).description or ""
    own = "\n\n".join(part for part in before.split("\n\n") if not part.startswith(TOLD))
    told = f"{TOLD} {difference.a}:** {verdict} (run {run_id} in the experiment {EXPERIMENT})"
    client.update_model_version(model, number, description=f"{told}\n\n{own}".strip())


def show(difference: Difference, kind: str, out: Output) -> None:
    """Print a comparison.

    Args:
        difference: what there is to say.
        kind: what a unit is, for example ``user``.
        out: where to.
    """
    out.say(f"A: {difference.a}    B: {difference.b}")
    for line in (*difference.verdict, *difference.remarks):
        out.say(f"  {line}")
    if difference.overall:
        _gains(f"Gain of B over A, all {kind}s", difference.overall, out)
        _gains("By segment", difference.segments, out)
        _gains("By what happened to them", difference.causes, out)
    else:
        shared = [(name, a, b) for name, a, b in difference.metrics if a is not None and b is not None]
        out.table("Metrics of both", ["metric", "A", "B"], shared[:METRICS_SHOWN])
    if difference.settings:
        out.table("Settings that differ", ["setting", "A", "B"], difference.settings)
    if difference.movement is not None:
        movement = difference.movement
        rows = [
            [j, movement.origin[j], f"{movement.members[j]:,.0f}", *(f"{100 * share:.2f} %" for share in row)]
            for j, row in enumerate(movement.shares)
        ]
        columns = ["prototype of B", "from A's", "members", *movement.layers]
        out.table("How far prototypes moved, of the layer's own weights", columns, rows)
    if difference.risen or difference.fallen:
        rows = [
            [
                shift.title or shift.item,
                f"{100 * shift.a:.1f} %",
                f"{100 * shift.b:.1f} %",
                "rose" if shift.change > 0 else "fell",
            ]
            for shift in (*difference.risen[:5], *difference.fallen[:5])
        ]
        out.table("In which share of the answers", ["item", "A", "B", ""], rows)
    for example in difference.examples[:1]:
        rows = [
            [rank, old, new, "new" if new in example.new else ""]
            for rank, (old, new) in enumerate(zip(example.before, example.after, strict=False), start=1)
        ]
        out.table(f"{kind.capitalize()} {example.unit}, after {example.input}", ["rank", "A", "B", ""], rows)


def _gains(title: str, gains: Sequence[Gain], out: Output) -> None:
    if not gains:
        return
    rows = [
        [
            gain.metric,
            gain.group or "all",
            gain.units,
            gain.a,
            gain.b,
            str(gain.gain),
            "" if gain.better == UNDECIDED else gain.better,
        ]
        for gain in gains
    ]
    out.table(title, ["metric", "for", "how many", "A", "B", "gain [95 %]", "better"], rows)
