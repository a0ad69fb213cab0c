"""The experiments behind every number of ``docs/vision-results.md``, run by one command and rendered from their results.

An experiment stands in ``docs/evidence/vision.toml``; its result is one JSON file beside it. An experiment whose description and
data are those of its result is not run again, and one that was interrupted goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evidence import tables
from benchmarks.evidence.tables import FOLDER, built, declared, interval, table
from persona.bootstrap import paired_bootstrap_over_seeds
from persona.comparison import Measured, differences
from persona.storage import digest_json, read_json, write_json
from pipelines.steps import cells
from pipelines.steps import vision as vision_steps
from pipelines.steps.evaluate import Comparison, evaluate
from pipelines.steps.workspace import Workspace
from vision.config import VisionConfig
from vision.data import catalogue
from vision.data.images import DeviceImages
from vision.task import VISION

RESULTS = Path("docs/vision-results.md")


@dataclass(frozen=True, kw_only=True)
class Experiment(tables.BaseExperiment):
    """One comparison, or one for each of several variants; its data may be a file under the data folder.

    Attributes:
        prepare: of the step ``prepare``: ``columns``, ``size``, ``divide``, ``streams``.
        variants: settings of each variant by its name, on top of ``settings``.
        segment: 1 or 2 shows the devices by the first or second part of their names; 0 does not.
    """

    prepare: Mapping[str, Any] = field(default_factory=dict)
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    segment: int = 0

    @property
    def trainings(self) -> int:
        """How many results a run makes."""
        return self.seeds * len(self.methods) * max(1, len(self.variants))

    def configs(self) -> dict[str, VisionConfig]:
        """The settings of the first seed of every variant; one without a name where there are none."""
        variants = self.variants or {"": {}}
        return {name: VisionConfig.from_dict({**self.settings, **own}) for name, own in variants.items()}

    @property
    def workspace(self) -> str:
        """Names the workspace: the data and how it is prepared."""
        return f"{Path(self.data).stem}-{digest_json(dict(self.prepare))[:6]}"


def experiments(folder: Path = FOLDER) -> dict[str, Experiment]:
    """All experiments by name.

    Raises:
        ConfigError: an experiment has an unknown key or setting.
    """
    path = folder / "vision.toml"
    return built(Experiment, declared(path)["experiment"], path)


def run(
    experiment: Experiment, work: Path, data_folder: Path | None, jobs: int, notify: cells.Notify, folder: Path = FOLDER
) -> bool:
    """Run ``experiment`` unless its result is up to date; whether it was run."""
    space = Workspace(work / experiment.workspace)
    if not space.prepared.exists():
        options = dict(experiment.prepare)
        streams = options.pop("streams", None)
        lists: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in (streams or {}).items()}
        made = None if streams is None else vision_steps.Streams(**lists)
        source = experiment.source(catalogue.CATALOGUE, experiment.data, data_folder)
        vision_steps.prepare(source, space, streams=made, **options)
    data = space.data(VISION)
    configs = experiment.configs()
    key = _key(experiment, data, configs)
    path = folder / f"{experiment.name}.json"
    if experiment.is_done(path, key):
        return False
    results, comparisons = {}, []
    for name, config in configs.items():
        asked = {"methods": experiment.methods, "seeds": experiment.seeds, "jobs": jobs, "notify": notify}
        [comparison] = evaluate(VISION, config, space, **asked)
        comparisons.append(comparison)
        results[name] = {
            **comparison.as_dict(),
            "rivals": _rivals(experiment, comparison),
            "segments": _segments(experiment, comparison, data),
        }
    described = {"images": data.n_images, "devices": data.n_devices, "classes": data.n_classes}
    overall = {"overall": _overall(experiment, comparisons)} if len(comparisons) > 1 else {}
    write_json(path, {"key": key, "data": described, "variants": results, **overall})
    return True


def _key(experiment: Experiment, data: DeviceImages, configs: Mapping[str, VisionConfig]) -> str:
    """Changes with whatever the numbers depend on."""
    plain = {name: value for name, value in asdict(experiment).items() if name not in ("title", "goal", "note")}
    return digest_json({"data": data.digest, "settings": {n: c.as_dict() for n, c in configs.items()}, **plain})


def _rivals(experiment: Experiment, comparison: Comparison) -> dict[str, Any]:
    """The last method against each rival, device by device."""
    last = comparison.of(experiment.methods[-1])
    return {
        rival: {metric: found.as_dict() for metric, found in differences(last, comparison.of(rival)).items()}
        for rival in experiment.rivals
    }


def _overall(experiment: Experiment, comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Mean accuracy of every method over the variants, and its difference to the host, of the last one also to its rivals."""
    methods, last = list(comparisons[0].measured[0]), experiment.methods[-1]
    return {
        "accuracy": {
            m: float(np.mean([np.mean([x.summary["accuracy"] for x in c.of(m)]) for c in comparisons])) for m in methods
        },
        "gains": {m: _between(comparisons, m, "host") for m in methods if m != "host"},
        "rivals": {rival: _between(comparisons, last, rival) for rival in experiment.rivals},
    }


def _between(comparisons: Sequence[Comparison], method: str, other: str) -> dict[str, float]:
    """Accuracy of one method minus another's, the mean over variants that count alike, with its interval over devices."""
    total = sum(len(c.measured[0]["host"].units) for c in comparisons)
    seeds = []
    for seed in range(comparisons[0].seeds):
        gaps = [
            c.measured[seed][method].per_unit["accuracy"] - c.measured[seed][other].per_unit["accuracy"]
            for c in comparisons
        ]
        seeds.append(np.concatenate([gap * total / (len(gaps) * len(gap)) for gap in gaps]))
    return paired_bootstrap_over_seeds(seeds).as_dict()


def _segments(experiment: Experiment, comparison: Comparison, data: DeviceImages) -> dict[str, Any]:
    """Accuracy of every method by a part of the devices' names, and the last method's gain with its interval."""
    if not experiment.segment:
        return {}
    units = comparison.measured[0]["host"].units
    names = np.array([data.device_ids[u].split("/")[experiment.segment - 1] for u in units])
    found = {}
    for name in dict.fromkeys(names.tolist()):
        own = names == name
        accuracy = {method: _mean(comparison.of(method), own) for method in comparison.measured[0]}
        last, host = comparison.of(experiment.methods[-1]), comparison.of("host")
        gaps = [a.per_unit["accuracy"][own] - b.per_unit["accuracy"][own] for a, b in zip(last, host, strict=True)]
        found[name] = {"accuracy": accuracy, "gain": paired_bootstrap_over_seeds(gaps).as_dict()}
    return found


def _mean(seeds: Sequence[Measured], own: Any) -> float:
    return float(np.mean([measured.per_unit["accuracy"][own].mean() for measured in seeds]))


def render(folder: Path = FOLDER) -> str:
    """The results page, from the result files that are there."""
    parts = [_HEAD]
    for experiment in experiments(folder).values():
        path = folder / f"{experiment.name}.json"
        if path.exists():
            parts.append(_section(experiment, read_json(path)))
    return "\n".join(parts).rstrip() + "\n"


_HEAD = """# Vision: results

Every table is rendered from a result file in `docs/evidence/` by `python -m benchmarks.evidence vision`, which runs what is missing or has
changed (`docs/evidence/vision.toml` holds all settings). A single one: the command below its heading. Numbers are means over test
devices, averaged over seeds; brackets are 95 % percentile bootstrap intervals over devices, whose differences are averaged over
seeds first. All methods of a table classify the same windows of the same devices in stream order; no test device is in training,
and all choices (epochs, learning rates, priors, neighbours, supports) are made on validation devices. `persona` is the whole method:
mode of training and number of prototypes chosen there, too, served as prototype and remainder; `persona_joint` and `finetune_all` change
the body, which devices receive once. Passes are those of the host for each image that is classified, bytes what a device receives
when it is adapted once.

These numbers are of the build of 22 November 2026. Since then methods with a bank
fit it by the recipe that users get, `auto` tries more modes, and a gate needs an interval: they will be measured again with item edits
and content.
"""


def _section(experiment: Experiment, result: Mapping[str, Any]) -> str:
    data = result["data"]
    chosen = ", ".join(f"{k} {v}" for k, v in experiment.settings.items())
    option = "" if experiment.data in catalogue.CATALOGUE else " --data-folder DATA"
    first = next(iter(result["variants"].values()))
    lines = [
        f"## {experiment.title}",
        "",
        f"Goal: {experiment.goal}",
        "",
        f"    python -m benchmarks.evidence vision {experiment.name}{option}",
        "",
        f"{experiment.data}: {data['images']:,} images, {data['devices']:,} devices, {data['classes']} classes; "
        f"{first['seeds']} seeds. Settings: {chosen}.",
        "",
    ]
    for name, variant in result["variants"].items():
        lines += [*([f"### {name}", ""] if name else []), f"{variant['devices']:,} test devices.", ""]
        lines += [*_table(variant), "", *_rival_lines(experiment, variant), *_segment_table(experiment, variant)]
    lines += _means(experiment, result)
    return "\n".join([*lines, *([experiment.note, ""] if experiment.note else [])])


def _table(variant: Mapping[str, Any]) -> list[str]:
    head = ["method", "accuracy", "against the host", "worst tenth", "logloss", "ECE", "forward", "backward", "bytes"]
    lines = []
    for row in variant["rows"]:
        m = row["metrics"]
        cells = [row["method"], f"{m['accuracy']:.4f}", interval(row["differences"].get("accuracy"))]
        cells += [f"{m[name]:.4f}" for name in ("accuracy_worst", "logloss", "ece")]
        cells += [f"{m[name]:g}" for name in ("forward_passes", "backward_passes")]
        lines.append([*cells, format(row["refresh_bytes"], ",")])
    return table(head, lines)


def _rival_lines(experiment: Experiment, variant: Mapping[str, Any]) -> list[str]:
    lines = [
        f"* {experiment.methods[-1]} against {rival}: accuracy {interval(found['accuracy'])}"
        for rival, found in variant["rivals"].items()
    ]
    return [*lines, ""] if lines else []


def _segment_table(experiment: Experiment, variant: Mapping[str, Any]) -> list[str]:
    if not variant["segments"]:
        return []
    methods = list(next(iter(variant["segments"].values()))["accuracy"])
    head = ["part", *methods, f"{experiment.methods[-1]} against the host"]
    lines = [
        [name, *(f"{found['accuracy'][method]:.3f}" for method in methods), interval(found["gain"])]
        for name, found in variant["segments"].items()
    ]
    return [*table(head, lines), ""]


def _means(experiment: Experiment, result: Mapping[str, Any]) -> list[str]:
    """Mean accuracy over the variants, where there are several."""
    variants, overall = result["variants"], result.get("overall")
    if overall is None:
        return []
    lines = []
    for i, method in enumerate(overall["accuracy"]):
        values = [variant["rows"][i]["metrics"]["accuracy"] for variant in variants.values()]
        shown = [f"{value:.4f}" for value in [*values, overall["accuracy"][method]]]
        lines.append([method, *shown, interval(overall["gains"].get(method))])
    head = ["method", *variants, "mean", "mean against the host"]
    rivals = [
        f"* {experiment.methods[-1]} against {rival}: mean accuracy {interval(found)}"
        for rival, found in overall["rivals"].items()
    ]
    return ["### All", "", *table(head, lines), "", *rivals, ""]
