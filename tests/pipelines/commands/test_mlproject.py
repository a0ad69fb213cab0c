import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import fields
from itertools import takewhile
from pathlib import Path
from typing import Any

import mlflow
import pytest
import typer
import yaml
from mlflow.projects._project_spec import load_project
from mlflow.utils.environment import _PythonEnv
from mlflow.utils.requirements_utils import _parse_requirements

from persona.errors import ConfigError
from pipelines import tracking
from pipelines.cli import app, main
from pipelines.commands.recsys import main as recsys_cli
from pipelines.tracking import store
from recsys.config import RecsysConfig
from tests.recsys.toy import write_walks
from vision.config import VisionConfig

ROOT = Path(__file__).parents[3]
PROJECT = yaml.safe_load((ROOT / "MLproject").read_text())
ENTRY_POINTS = PROJECT["entry_points"]
DEFAULTS = {f.name: f.default for f in fields(RecsysConfig)}
# Of the commands of a task, options made from settings have the settings' defaults.
SETTINGS = {"recsys": DEFAULTS, "vision": {f.name: f.default for f in fields(VisionConfig)}}
# Of the recommender's commands, plans are no steps of a project.
NO_ENTRY_POINT = {"plan"}


def arguments(name: str, **given: str) -> list[str]:
    """What the command line gets for these parameters, as MLflow puts it together."""
    entry = load_project(str(ROOT)).get_entry_point(name)
    required = {key: "films.csv" for key, parameter in entry.parameters.items() if parameter.default is None}
    words = shlex.split(entry.compute_command({**required, **given}, None))
    return words[words.index("pipelines.cli") + 1 :]


def command(name: str) -> tuple[list[str], Any]:
    """The words that name the command of an entry point, and the command."""
    words = list(takewhile(lambda word: not word.startswith("-"), arguments(name)))
    found = typer.main.get_command(app)
    for i, word in enumerate(words):
        if not hasattr(found, "commands"):  # the rest are arguments
            return words[:i], found
        found = found.commands[word]
    return words, found


def test_the_project_has_an_entry_point_for_every_step():
    assert PROJECT["name"] == "persona"
    steps = typer.main.get_command(recsys_cli.app).commands.keys() - NO_ENTRY_POINT
    named = {name: " ".join(command(name)[0]) for name in ENTRY_POINTS}
    assert named["recsys"] == "recsys run"
    assert named["refine"] == "recsys refine"
    for step in steps - {"run"}:
        assert named[f"recsys-{step}"] == f"recsys {step}"
    for other in ("compare", "export", "lineage", "promote", "rollback", "serve"):
        assert named[other] == other


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_parameters_are_options_with_the_same_names_types_and_defaults(name):
    words, found = command(name)
    options = {option.name: option for option in found.params}
    flags = {flag: option for option in found.params for flag in option.opts}
    for parameter, described in ENTRY_POINTS[name]["parameters"].items():
        option = flags.get(f"--{parameter}") or options[parameter]
        number = isinstance(described.get("default"), int | float)
        assert described["type"] == ("float" if number else "string")
        if option.required:
            assert "default" not in described
        else:
            default = SETTINGS.get(words[0], {}).get(option.name, option.default)
            default = "" if default is None and not number else default
            assert described["default"] == (str(default) if isinstance(default, Path) else default)


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_every_parameter_reaches_its_option(name):
    parameters = ENTRY_POINTS[name]["parameters"]
    words = arguments(name, **{parameter: f"value of {parameter}" for parameter in parameters})
    given = {name for option in command(name)[1].params for name in option.opts}
    for parameter in parameters:
        place = words.index(f"value of {parameter}")
        assert parameter in given or words[place - 1] == f"--{parameter}"


def test_steps_after_pretraining_declare_no_settings_that_would_override_what_they_take_over():
    for name in ENTRY_POINTS.keys() - {"recsys", "recsys-pretrain"}:
        if command(name)[0][0] == "recsys":
            declared = {parameter.replace("-", "_") for parameter in ENTRY_POINTS[name]["parameters"]}
            assert not declared & set(DEFAULTS)


def test_any_other_option_can_be_given_as_a_parameter():
    assert arguments("recsys-edit", **{"learning-rate": "0.5"})[-2:] == ["--learning-rate", "0.5"]


def test_the_environment_is_the_lock():
    environment = _PythonEnv.from_yaml(ROOT / PROJECT["python_env"])
    assert environment.python == "3.11"
    locked = {r.req_str.partition("==")[0] for r in _parse_requirements(environment.dependencies, False, str(ROOT))}
    assert {"torch", "torchrec", "mlflow", "fbgemm-gpu-cpu", "polars"} <= locked


def test_parameters_that_mlflow_spells_its_own_way_are_the_same(workplace, monkeypatch):
    """MLflow logs -P tau=1 before the settings log 1.0; another value is still refused."""
    client = mlflow.MlflowClient(tracking_uri=store.default_uri())
    joined = client.create_run(tracking.connect("recsys").experiment_id).info.run_id
    for key, value in (("tau", "1"), ("learning_rate", "3e-3"), ("host", "sasrec"), ("epochs", "60")):
        client.log_param(joined, key, value)
    monkeypatch.setenv("MLFLOW_RUN_ID", joined)
    with tracking.run("pretrain"):
        tracking.log_params(RecsysConfig().as_dict())
        with pytest.raises(ConfigError, match=r"started with tau = 1, not 2\.0"):
            tracking.log_params({"tau": 2.0})
        with pytest.raises(ConfigError, match="started with host = sasrec, not din"):
            tracking.log_params({"host": "din"})


def test_steps_stay_in_the_experiment_of_the_run_they_are_part_of(workplace, monkeypatch):
    client = mlflow.MlflowClient(tracking_uri=tracking.connect("recsys").uri)
    chosen = client.create_experiment("chosen")
    monkeypatch.setenv("MLFLOW_RUN_ID", client.create_run(chosen).info.run_id)
    tracking.connect("recsys")
    with tracking.run("all"):
        assert tracking.connect("recsys").experiment_id == chosen
        with tracking.run("prepare") as step:
            assert step.info.experiment_id == chosen
    assert tracking.connect("recsys").experiment_id != chosen


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("mlproject")


@pytest.fixture(scope="module")
def mlflow_run(place):
    """Runs an entry point as a user does, in a store and a workspace of its own; returns the exit code and the run."""
    uri = f"sqlite:///{place / 'store' / 'mlflow.db'}"
    (place / "store").mkdir()
    # Tests that ran before leave MLflow's variables behind.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    base = {**clean, "MLFLOW_TRACKING_URI": uri, "MLFLOW_DISABLE_TELEMETRY": "true"}
    # No active environment; where the checkout has none either, the one of the tests is found.
    base |= {"VIRTUAL_ENV": "", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    data = write_walks(place / "log of films.csv")

    def run(
        entry_point: str,
        *,
        project: str = str(ROOT),
        environment: Mapping[str, str] | None = None,
        **parameters: object,
    ):
        given = {"data": data, "work": place / "work", **parameters}
        pairs = [word for key, value in given.items() for word in ("-P", f"{key.replace('_', '-')}={value}")]
        done = subprocess.run(
            [
                *(sys.executable, "-m", "mlflow", "run", project, "-e", entry_point, "--env-manager", "local"),
                *("--experiment-name", "project", *pairs),
            ],
            capture_output=True,
            text=True,
            cwd=place,
            env={**base, **(environment or {})},
            check=False,
        )
        client = mlflow.MlflowClient(tracking_uri=uri)
        experiment = client.get_experiment_by_name("project").experiment_id
        runs = client.search_runs([experiment], order_by=["attributes.start_time DESC"])
        latest = next(run for run in runs if "mlflow.parentRunId" not in run.data.tags)
        return done, latest, client

    return run


@pytest.mark.slow
def test_mlflow_runs_a_step_as_its_own_run(mlflow_run, place):
    before = sorted((ROOT / "work").rglob("*"))
    done, run, client = mlflow_run("recsys-prepare")
    assert done.returncode == 0, done.stderr
    assert run.info.status == "FINISHED"
    assert run.data.metrics["users"] == 60
    assert run.data.params["source"] == str(place / "log of films.csv")
    assert run.data.tags["step"] == "prepare"
    assert [run.info.run_id] == [r.info.run_id for r in client.search_runs([run.info.experiment_id])], "no second run"
    assert "60 users on 30 items" in done.stdout
    assert (place / "work" / "prepared" / "sequences.json").is_file()
    assert sorted((ROOT / "work").rglob("*")) == before, "nothing was written into the checkout"


@pytest.mark.slow
def test_a_parameter_that_is_no_option_fails_the_run_and_names_the_nearest(mlflow_run):
    done, run, _ = mlflow_run("recsys-prepare", min_event=3)
    assert done.returncode != 0
    assert run.info.status == "FAILED"
    assert "--min-events" in done.stderr
    assert "--min-event" in run.data.tags["failure"], "the reason is on the run"


@pytest.mark.slow
def test_mlflow_runs_everything_under_one_parent(mlflow_run, place):
    small = {"dim": 8, "max_length": 5, "batch_size": 128, "dropout": "0", "tau": 1}
    methods = "host,persona_held_back"
    done, run, client = mlflow_run("recsys", methods=methods, epochs=1, host="gru4rec", **small)
    assert done.returncode == 0, done.stderr
    assert run.info.status == "FINISHED"
    assert run.data.params["epochs"] == "1"
    children = client.search_runs([run.info.experiment_id], f"tags.mlflow.parentRunId = '{run.info.run_id}'")
    assert {child.info.run_name for child in children} == {"prepare", "evaluate", "prototypes", "release"}
    assert all(child.info.status == "FINISHED" for child in children)
    assert client.get_model_version("persona-recsys-log-of-films", "1").tags["gate.release"]
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["recommendations.json"]
    assert "persona_held_back" in done.stdout


def test_a_wrong_value_of_a_parameter_is_one_sentence(workplace, capsys):
    assert main(arguments("recsys-pretrain", host="sasrce")) == 2
    assert "unknown host 'sasrce': did you mean 'sasrec'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_mlflow_runs_the_project_from_a_git_uri(place, mlflow_run):
    """A clone has no environment of its own: it takes the active one, and the code is that of the commit."""
    origin = place / "origin"
    shutil.copytree(ROOT / "pipelines", origin / "pipelines", ignore=shutil.ignore_patterns("__pycache__"))
    for package in ("persona", "recsys", "vision"):
        shutil.copytree(ROOT / package, origin / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("MLproject", "python_env.yaml", "requirements.lock"):
        shutil.copy(ROOT / file, origin / file)
    git = ["git", "-C", origin, "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "a"]):
        subprocess.run([*git, *command], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    remote = "https://git.example.org/persona.git"
    here = {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{origin}/.git.insteadOf",
        "GIT_CONFIG_VALUE_0": remote,
    }
    active = {"VIRTUAL_ENV": sys.prefix, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done, run, _ = mlflow_run("recsys-prepare", project=remote, environment=here | active, work=place / "from git")
    assert done.returncode == 0, done.stderr
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.source.git.commit"] == commit
    assert run.data.tags["mlflow.source.git.repoURL"] == remote
    assert run.data.metrics["users"] == 60
    assert (place / "from git" / "prepared" / "sequences.json").is_file()
