"""The task of recommending: what the steps of every pipeline call, for users and their histories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona.task import Interface, Task, at_home, later
from recsys.config import HOLD_BACK, RecsysConfig

if TYPE_CHECKING:  # the command line reads a task without waiting for torch
    from persona.comparison import Measured
    from persona.prototypes import PrototypeBank
    from persona.training.objective import FitResult
    from recsys.evaluation import Evaluation
    from recsys.methods import Problem, Trained
    from recsys.personalised import Personalised
    from recsys.serving.release import Release

# Events of an example of what the registered model reads.
EXAMPLE_LENGTH = 5


def _headlines(protocol: str) -> tuple[str, ...]:
    own = {"full": ("ndcg_10", "hr_10"), "time": ("uauc", "ndcg_10", "full_ndcg_10")}
    return own.get(protocol, ("uauc", "ndcg_10"))


def _train_host(problem: Problem) -> tuple[str, FitResult]:
    if problem.config.mode in HOLD_BACK:
        problem.early_host()
    else:
        problem.base_host()
    return problem.trainings.results.popitem()


def _model(trained: Trained) -> Personalised:
    from persona.methods import editor_of
    from recsys.personalised import Personalised

    model = trained.scorer
    assert isinstance(model, Personalised)
    editor_of(model)
    return model


def _levels(
    problem: Problem, evaluation: Evaluation, model: Personalised, bank: PrototypeBank, levels: Sequence[str]
) -> dict[str, Measured]:
    from persona.comparison import Measured
    from recsys.prototypes import evaluate_levels

    found = evaluate_levels(evaluation, model, bank, levels)
    return {level: Measured(level, e.summary, e.per_user, e.users) for level, e in found.items()}


def _release(problem: Problem, model: Personalised, info: Mapping[str, Any]) -> Release:
    from persona.torch_device import on_cpu
    from recsys.serving.release import Release

    data, titles = problem.data, problem.data.titles
    # Every door answers as the version was judged.
    told = {**info, "seen": True} if problem.config.offers_seen(data) else info
    return Release(on_cpu(model), data.item_ids.to_list(), None if titles is None else titles.to_list(), told)


def _save(release: Release, folder: Path, item_table: str = "") -> None:
    """``item_table`` is how a service keeps the items, as in ``Release.compile``."""
    release.compile(item_table).save(folder)


def _example(release: Release) -> Any:
    import pandas as pd

    return pd.DataFrame({"history": [release.item_ids[:EXAMPLE_LENGTH]]})


def _describe(release: Release, tags: Mapping[str, Any]) -> str:
    host = release.model.host.config
    return (
        f"{host.kind} host ({host.variant}, d = {host.dim}, T = {host.max_length}) over {len(release.item_ids):,} items, "
        f"with an editor trained in mode {tags.get('mode', '?')}."
    )


# Those of ``recsys.methods``, which takes seconds to import.
METHODS = (
    "host",
    "popularity",
    "popularity_recent",
    "item_knn",
    "markov",
    "personal",
    "trained_longer",
    "finetune_all",
    "finetune_adaptive",
    "finetune_cluster",
    "finetune_device_1",
    "finetune_device_10",
    "duet",
    "apg",
    "persona_frozen",
    "persona_joint",
    "persona_generated",
    "host_refreshed",
    "persona_held_back",
    "persona_cross_fitted",
    "persona_refreshed",
    "persona_prototypes",
    "persona_basis",
    "persona",
    "item_edits",
    "persona_items",
)

RECSYS = Task(
    **at_home("recsys"),
    name="recsys",
    named=METHODS,
    place="recsys.task:RECSYS",
    unit="user",
    context="context",
    work=Path("work"),
    config=RecsysConfig,
    protocols=("paper", "full", "time"),
    compared=("uauc", "ndcg_10", "hr_10"),
    deciding=("uauc", "ndcg_10"),
    tagged=("host", "preset", "seed"),
    interface=Interface(
        artifact="recommender",
        inputs={"history": [str]},
        outputs={"items": [str], "scores": [float], "titles": [str], "level": str, "fallback": str},
        parameters={"k": 10, "level": "edit", "seen": False},
        requirements=("onnxruntime", "safetensors", "polars", "numpy", "pandas"),
        example=_example,
        describe=_describe,
    ),
    load=later("recsys.data.sequences:SequenceData.load"),
    # Whoever does not beat these needs no model.
    rivals=("popularity_recent", "item_knn"),
    untrained=("popularity", "popularity_recent", "item_knn", "markov", "personal"),
    headlines=_headlines,
    train_host=_train_host,
    model=_model,
    bank_config=attrgetter("bank_config"),
    fit_bank=later("recsys.prototypes:fit_bank"),
    levels=_levels,
    release=_release,
    save=_save,
    ranks=True,
    versions_apart=True,
    rows=later("recsys.methods.given:rows_to_score"),
)
