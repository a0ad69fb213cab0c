"""The step ``release`` of any task: host, editor and bank as a bundle, in the registry; past the gate it is the candidate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from persona.comparison import REFERENCE, Measured, compare, metric_name
from persona.prototypes import Lineage, PrototypeBank, editor_digest
from persona.task import ALONE, OnEpoch, Task
from pipelines import tracking
from pipelines.steps import gate
from pipelines.steps.workspace import Workspace
from pipelines.tracking import registry
from pipelines.versions import snapshots


@dataclass(frozen=True)
class Released:
    """A servable bundle and its version in the registry.

    Attributes:
        bundle: its folder.
        model: its version.
        mode: in which its editor was trained.
        host_digest: of its host.
        metrics: on the test part.
        bank: version of its prototypes; empty without any.
        prototypes: how many.
        gate: what the gate said, in one line.
        candidate: whether the version is called so.
    """

    bundle: Path
    model: registry.Registered
    mode: str
    host_digest: str
    metrics: dict[str, float] = field(default_factory=dict)
    bank: str = ""
    prototypes: int = 0
    gate: str = ""
    candidate: bool = True


def release(task: Task, config: Any, work: Workspace, on_epoch: OnEpoch | None = None, **options: Any) -> Released:
    """Pack host, editor and the bank at the head of their lineage; register the bundle, and call it the candidate past the gate.

    What is worse on validation than what there is besides (see ``gate.ask``) is not released: the best of that is.

    Args:
        task: what is personalised.
        config: settings.
        work: where the data is and the bundle goes.
        on_epoch: called with the name of a training and the metrics of each of its epochs.
        **options: of ``task.save``.
    """
    work.connect(task)
    with tracking.run("release", tags={"step": "release"}):
        tracking.log_params(config.as_dict())
        problem = task.problem(work.data(task), config, folder=work.cells, on_epoch=on_epoch)
        mode, trained = task.train_configured(problem)
        verdict, method = gate.ask(task, problem, task.model(trained)), f"persona_{mode}"
        model = verdict.model
        bank = served_bank(work.lineage(model.host.digest()), model)
        # All is decided: from here on the test part is read, to tell what is released.
        measured = {
            REFERENCE: task.measure(problem, REFERENCE),
            method: _measured(task, problem, method, trained, verdict),
        }
        metrics = {metric_name(config.protocol, name): v for name, v in measured[method].summary.items()}
        info = {"settings": config.as_dict(), "metrics": metrics, "data_digest": problem.data.digest, "parent": None}
        made = task.release(problem, model, info)
        if bank is not None:
            made = made.with_bank(bank)
        task.save(made, work.bundle, **options)
        tracking.log_metrics_batch(metrics)
        levels = {"": measured[method]}
        with problem.reporting():
            if bank is not None:
                levels |= task.levels(problem, problem.test, model, bank, (ALONE,))
            snapshots.log(snapshots.of_release(task, problem, levels, made, "edit"))
        tags = _tags(task, config, mode, trained.chosen, bank) | {
            "host_digest": made.host_digest,
            "data_digest": problem.data.digest,
            gate.TAG: verdict.tag,
            **compare([measured])[1].gains(config.protocol),
        }
        registered = registry.register(
            task, work.bundle, made, tags, metrics, [f"Gate: {verdict.tag}."], verdict.passed, data=work.name
        )
    work.remember(config)
    version, k = ("", 0) if bank is None else (bank.version, len(bank))
    return Released(work.bundle, registered, mode, made.host_digest, metrics, version, k, verdict.tag, verdict.passed)


def _measured(task: Task, problem: Any, method: str, trained: Any, verdict: gate.Verdict) -> Measured:
    """What is released on the test part, under the name of the method that was asked for."""
    if verdict.released == gate.WHOLE:
        return task.measure(problem, method)
    with problem.reporting():
        tested: Measured = problem.tested(replace(trained, model=verdict.model))
    return replace(tested, method=method)


def served_bank(lineage: Lineage, model: Any) -> PrototypeBank | None:
    """The bank at the head of the lineage of the model's host, if it was made with the model's editor."""
    if model.editor is None or not lineage.head:
        return None
    model.editor.host = lineage.host
    bank = lineage.load()
    return bank if bank.editor == editor_digest(model.editor) else None


def _tags(
    task: Task, config: Any, mode: str, chosen: Mapping[str, float], bank: PrototypeBank | None
) -> dict[str, Any]:
    """What a version is found by: settings, the mode of its editor and what validation chose beside it, its bank."""
    version, k = ("", 0) if bank is None else (bank.version, len(bank))
    return {
        **{name: getattr(config, name) for name in task.tagged},
        "mode": mode,
        **{f"chosen.{name}": value for name, value in chosen.items() if name != mode},
        "protocol": config.protocol,
        **tracking.commit_tags(),
        "bank": version,
        "bank_version": version,
        "k": k,
    }
