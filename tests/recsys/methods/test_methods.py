import copy
import subprocess
import sys
from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch

from persona.comparison import Measured, compare
from persona.errors import ConfigError
from persona.methods import FLOAT_BYTES, ReadBeforeReport
from persona.storage import read_json
from persona.training.objective import FitResult
from recsys.data.batches import Context
from recsys.methods import METHODS, Problem, measure, train_configured, train_method
from recsys.methods import problem as problems
from recsys.methods.persona import GATES, PARTS, _gated, _one_after_another, brackets
from recsys.personalised import Personalised
from tests.persona.sealed import sealed
from tests.recsys.toy import SMALL, walks

# Methods without a network, and methods that follow the stream and without one are others of the table (their own tests are in
# test_rivals and test_items).
SIMPLE = ("popularity", "popularity_recent", "item_knn", "markov", "personal")
FOLLOWING = ("item_edits", "persona_items")


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    return Problem(walks(), SMALL, folder=tmp_path_factory.mktemp("cells"))


@pytest.fixture(scope="module")
def trained(problem):
    """Every method, trained once, on a problem whose test part explodes when it is touched."""
    blind = sealed(Problem(walks(), SMALL, folder=problem.trainings.root))
    return {name: train_method(name, blind) for name in METHODS if name not in FOLLOWING}


@pytest.fixture(scope="module")
def measured(problem, trained):
    return {name: measure(problem, name) for name in trained}


def parameters(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def spoilt(model):
    """The same model with an editor that says anything."""
    harmful = Personalised(model.host, copy.deepcopy(model.editor), fixed_host=True).eval()
    with torch.no_grad():
        for head in harmful.editor.heads:
            for parameter in head.generated():
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    return harmful


def same(one, other):
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("name", [name for name in METHODS if name not in FOLLOWING])
def test_every_method_trains_and_is_measured(name, problem, trained, measured):
    method, result = trained[name], measured[name]
    untrained = name in SIMPLE or name.startswith("finetune_device")
    epochs = {"host_refreshed": PARTS}.get(name, 0 if untrained else 1) * SMALL.epochs
    assert method.result.epochs == len(method.result.history) == epochs
    assert method.result.seconds > 0
    assert all(np.isfinite(row["loss"]) for row in method.result.history)
    assert result.method == name
    assert (result.epochs, result.best_epoch) == (epochs, method.result.best_epoch)
    assert dict(result.chosen) == method.chosen
    assert result.units.tolist() == list(range(60))
    with problem.reporting():
        assert result.summary == problem.test.run(method.scorer).summary
    assert 0 < result.summary["uauc"] < 1
    if name not in SIMPLE:
        assert not any(module.training for module in method.scorer.host.modules())


def test_methods_cost_what_their_devices_receive(problem, trained):
    host = problem.new_host()
    adaptive = FLOAT_BYTES * sum(p.numel() for p in host.adaptive_parameters())
    everything = FLOAT_BYTES * sum(p.numel() for p in host.parameters())
    assert 0 < adaptive < everything
    found = {name: method.refresh_bytes for name, method in trained.items()}
    found = {name: size for name, size in found.items() if name not in SIMPLE}
    expected = dict.fromkeys(found, adaptive)
    whole = {"host": 0, "trained_longer": everything, "finetune_all": everything, "persona_prototypes": 1}
    for name in ("persona_cross_fitted", "persona_refreshed"):
        whole |= {name: adaptive if trained[name].chosen["gate"] else 0}
    whole |= {"host_refreshed": everything, "finetune_device_1": 0, "finetune_device_10": 0, "finetune_cluster": 1}
    # Two cores of 8 x 8 and two biases of 8: APG sends as much as all of these layers, which are no wider than its rank.
    for name in ("persona_basis", "persona"):
        nothing = trained[name].chosen.get("gate") == 0
        assert (0 if nothing else 2) <= found.pop(name) <= (0 if nothing else 64)
        del expected[name]
    assert found == expected | whole


def test_the_time_of_a_refresh_and_the_parameters_beyond_the_host_are_measured(problem, measured):
    measured = {name: result for name, result in measured.items() if name not in SIMPLE}
    seconds = {name: result.refresh_seconds for name, result in measured.items()}
    assert seconds.pop("host") == 0.0
    for name in ("trained_longer", "finetune_all", "finetune_adaptive", "host_refreshed"):
        assert seconds.pop(name) == measured[name].seconds, "one training adapts everybody"
    assert all(0 < value < 0.1 for value in seconds.values()), "of one device"
    assert seconds["finetune_device_10"] > seconds["finetune_device_1"]
    parameters = {name: result.parameters for name, result in measured.items()}
    editor, generator = (
        sum(p.numel() for p in problem.new_editor(problem.new_host(), generate=generate).parameters())
        for generate in (False, True)
    )
    assert all(
        parameters[name] == 0 for name in measured if name.startswith(("host", "train", "finetune_a", "finetune_d"))
    )
    assert parameters.pop("persona_generated") == generator
    assert parameters.pop("persona") == (generator if "generated" in measured["persona"].chosen else editor)
    assert all(count == editor for name, count in parameters.items() if name.startswith("persona"))
    adaptive = sum(p.numel() for p in problem.new_host().adaptive_parameters())
    assert parameters["finetune_cluster"] == measured["finetune_cluster"].chosen["clusters"] * adaptive


def test_all_methods_compare_with_the_host(measured):
    rows = compare([measured])
    assert [row.method for row in rows] == [name for name in METHODS if name not in FOLLOWING]
    longer = next(row for row in rows if row.method == "trained_longer")
    assert longer.differences["uauc"].interval.mean == pytest.approx(
        measured["trained_longer"].summary["uauc"] - measured["host"].summary["uauc"]
    )


def test_the_host_stays_as_it_is_under_an_editor(problem, trained):
    for name, host in (("persona_frozen", problem.base_host()), ("persona_held_back", problem.early_host())):
        model = trained[name].scorer
        assert trained[name].result.best_epoch >= 0, "the editor learned something"
        assert same(parameters(host), model.host.state_dict())
        assert not same(parameters(problem.new_editor(host)), model.editor.state_dict())
    assert not same(parameters(problem.base_host()), problem.early_host().state_dict())


@torch.no_grad()
def test_prototypes_come_near_the_editor_and_a_remainder_nearer(problem, trained):
    context = problem.validation.contexts.index_select(torch.arange(40))
    exact = trained["persona_held_back"].scorer.edit(context)
    errors = {
        name: float((trained[name].scorer.edit(context) - exact).norm().mean() / exact.norm().mean())
        for name in ("persona_prototypes", "persona_basis")
    }
    assert 0 < errors["persona_basis"] < errors["persona_prototypes"] < 1
    assert errors["persona_basis"] < 0.05


def test_parts_hold_each_later_row_once_in_the_order_of_time(problem):
    rows, parts = problem.held_back.adapt, problem.parts(3)
    assert len(parts) == 3
    assert sorted(np.concatenate(parts)) == sorted(rows)
    times = problem.data.times
    for before, after in pairwise(parts):
        assert times[before].max() < times[after].min()
    unordered = Problem(replace(problem.data, ordered_only=True), problem.config)
    owners = [set(unordered.data.user_of(part)) for part in unordered.parts(3)]
    assert all(a.isdisjoint(b) for a, b in combinations(owners, 2)), "without a common time, a user is in one part"


def test_cross_fitting_judges_each_part_over_a_host_that_has_not_seen_it(problem, trained):
    parts = problem.parts(PARTS)
    hosts = problem.refreshed_hosts(parts)
    assert len(hosts) == len(parts) + 1
    assert same(parameters(hosts[0]), problem.early_host().state_dict())
    assert not same(parameters(hosts[0]), hosts[-1].state_dict())
    model, refreshed = trained["persona_cross_fitted"].scorer, trained["host_refreshed"].scorer
    assert same(parameters(model.host), hosts[-1].state_dict()), "the last host is deployed, and no editor changes it"
    assert same(parameters(model.host), refreshed.host.state_dict())
    assert model.editor.host == model.host.digest()


def test_a_refresh_part_by_part_kept_its_start_only_if_no_part_was_of_use():
    first, second = FitResult([{"auc": 0.1}] * 3, -1, 0.2, 1.0), FitResult([{"auc": 0.3}] * 2, 1, 0.3, 2.0)
    total = _one_after_another([first, second, first])
    assert (total.epochs, total.best_epoch, total.best_value, total.seconds) == (8, 4, 0.3, 4.0)
    assert _one_after_another([first, first]).best_epoch == -1


def test_a_refresh_in_one_piece_edits_the_host_that_was_fine_tuned_on_all_later_rows(problem, trained):
    model, tuned = trained["persona_refreshed"], trained["finetune_all"]
    assert same(parameters(model.scorer.host), tuned.scorer.host.state_dict())
    assert model.scorer.editor.host == tuned.scorer.host.digest()
    assert model.body_bytes == tuned.refresh_bytes > model.refresh_bytes
    learned = trained["persona_held_back"].result.seconds
    assert model.result.seconds > learned + tuned.result.seconds, "what it needs takes its time, too"


def test_a_gate_lets_through_what_validation_supports_by_its_intervals(problem, trained):
    for name in ("persona_cross_fitted", "persona_refreshed"):
        assert trained[name].chosen["gate"] in GATES
    better = Problem(walks(), replace(SMALL, epochs=12, patience=12, dim=16))
    model = train_method("persona_held_back", better).scorer
    kept, gate = _gated(better, model)
    assert (kept, gate) == (model, 1.0), "an editor that is not proven harmful stays whole"
    harmful = spoilt(model)
    gated, gate = _gated(better, harmful)
    assert better.score(harmful) < better.score(gated)
    assert gate == 0.0
    assert better.score(gated) == better.score(Personalised(model.host))


def test_persona_serves_the_mode_that_validation_prefers(problem, trained):
    tried = brackets(problem)
    assert [set(bracket.modes) for bracket in tried] == [
        {"held_back", "cross_fitted", "refreshed"},
        {"generated", "joint"},
    ]
    chosen = dict(trained["persona"].chosen)
    mode, served = train_configured(problem)
    assert mode in {mode for bracket in tried for mode in bracket.modes}
    assert same(parameters(served.scorer), parameters(trained[f"persona_{mode}"].scorer))
    assert problem.preference(served.scorer) >= max(
        problem.preference(trained[f"persona_{left}"].scorer)
        for bracket in tried
        for left in bracket.modes
        if left in chosen
    )
    prototypes = chosen.pop("prototypes", 0)
    assert (prototypes >= 1) == (chosen.get("gate") != 0)
    assert chosen == trained[f"persona_{mode}"].chosen | {mode: 1.0}
    assert train_configured(problem.with_config(replace(SMALL, mode="joint")))[0] == "joint"
    assert trained["persona"].refresh_bytes <= 64


def test_under_time_a_choice_also_looks_behind_a_gap(monkeypatch):
    monkeypatch.setattr(problems, "LATE", 10)
    timed = Problem(walks(users=80, events=14), replace(SMALL, protocol="time", validation_events=10**6))
    rows, late = timed.validation.positions, timed.late.positions
    assert timed.data.times[late].min() > np.median(timed.data.times[rows])
    assert set(late) < set(rows)
    model = Personalised(timed.new_host().eval())
    values = [timed.score(model), timed.late.run(model).summary[SMALL.monitor]]
    assert timed.preference(model) == pytest.approx(np.mean(values))
    assert set(timed.judged(model)) == {"uauc", "full_ndcg_10"}
    monkeypatch.setattr(problems, "LATE", 10**6)
    few = Problem(timed.data, timed.config)
    assert few.late is None
    assert few.preference(model) == few.score(model)


def test_where_there_is_no_time_there_is_no_gap(problem):
    assert problem.late is None
    model = Personalised(problem.new_host().eval())
    assert problem.preference(model) == problem.score(model)
    assert set(problem.judged(model)) == {"uauc"}


def test_the_test_part_is_read_in_reports_alone(problem):
    with pytest.raises(ReadBeforeReport, match="reporting"):
        problem.test  # noqa: B018
    with problem.reporting():
        assert np.array_equal(problem.test.positions, problem.split.test)
    blind = sealed(Problem(problem.data, problem.config))
    with pytest.raises(AssertionError, match="a decision read the test part"):
        blind.data.times[blind.split.test]
    assert not np.isin(problem.everything, problem.split.test).any()


def test_fine_tuning_of_adaptive_layers_leaves_the_shared_ones(problem, trained):
    base, tuned = problem.base_host(), trained["finetune_adaptive"].scorer.host
    assert trained["finetune_adaptive"].result.best_epoch >= 0
    for before, after in zip(base.shared_parameters(), tuned.shared_parameters(), strict=True):
        assert torch.equal(before, after)
    for before, after in zip(base.adaptive_parameters(), tuned.adaptive_parameters(), strict=True):
        assert not torch.equal(before, after)


def test_fine_tuning_of_everything_starts_at_the_host_and_changes_all(problem, trained):
    base, tuned = problem.base_host(), trained["finetune_all"].scorer.host
    assert trained["finetune_all"].result.best_epoch >= 0
    for before, after in zip(base.parameters(), tuned.parameters(), strict=True):
        assert not torch.equal(before, after)
        assert (before - after).abs().max() < 0.5


def test_duet_generates_the_adaptive_layers_over_zeros(problem, trained):
    model = trained["duet"].scorer
    assert all((p == 0).all() for p in model.host.adaptive_parameters())
    assert model.editor.config.bound == "none"
    assert model.editor.config.transfer == "none"
    generated = model.edit(problem.validation.contexts.index_select(torch.arange(8)))
    flat = generated.flat()
    assert (flat.norm(dim=1) > 0.1).all()
    assert (flat[0] - flat[1:]).norm(dim=1).max() > 1e-3, "another device gets other weights"


def test_joint_training_moves_host_and_editor(problem, trained):
    model = trained["persona_joint"].scorer
    assert model.edit_dropout == SMALL.edit_dropout
    assert not same(parameters(problem.new_host()), model.host.state_dict())
    assert (model.edit(problem.validation.contexts).norm() > 0).all()


def test_a_generating_editor_is_centred_on_the_host(problem, trained):
    """The host alone is what it was under the mean edit: edits have none left, and what it says under them has not changed."""
    model = trained["persona_generated"].scorer
    rows = problem.everything
    items, lengths = problem.data.contexts(rows, model.host.config.max_length)
    context = Context(torch.from_numpy(items), torch.from_numpy(lengths))
    mean, typical = model.edit(context).flat().mean(0).norm(), model.edit(context).flat().norm(dim=1).mean()
    assert mean < 1e-4 * typical
    plain = problem.new_host()
    uncentred = Personalised(plain, problem.new_editor(plain, generate=True))
    best = problem.train("persona_generated", uncentred, uncentred.parameters(), rows).best_value
    assert problem.validation.run(model).summary[SMALL.monitor] == pytest.approx(best, abs=2e-3)


def test_a_trained_host_knows_the_walks():
    """Chance is .5; the next item is certain nine times out of ten."""
    problem = Problem(walks(users=100), replace(SMALL, epochs=12, patience=12, dim=16))
    host = train_method("host", problem).scorer
    with problem.reporting():
        assert problem.test.run(host).summary["uauc"] > 0.85


def test_the_held_back_editor_learns_what_the_host_could_not_see():
    """Late in time all strides grow by three: only rows held back from the host show it."""
    config = replace(SMALL, protocol="time", epochs=10, patience=10, dim=16)
    problem = Problem(walks(users=100, events=14, turn=9), config)
    models = [train_method(name, problem).scorer for name in ("host", "persona_held_back")]
    with problem.reporting():
        host, edited = (problem.test.run(model) for model in models)
    assert edited.summary["uauc"] > host.summary["uauc"] + 0.03


@pytest.mark.parametrize("protocol", ["paper", "time"])
def test_the_editor_learns_from_rows_that_its_host_has_not_seen(protocol):
    problem = Problem(walks(), replace(SMALL, protocol=protocol))
    split = problem.held_back
    assert len(split.adapt) > 0
    assert not set(split.adapt) & set(split.train)
    assert set(problem.everything) == set(problem.split.train) | set(problem.split.adapt)
    own_slice = len(problem.split.adapt) > 0
    assert own_slice == (protocol == "time")
    problem.early_host()
    assert list(problem.trainings.results) == (["host"] if own_slice else ["host_early"])


def test_hosts_of_a_problem_are_equal_and_independent(problem):
    one, other = problem.base_host(), problem.base_host()
    assert same(parameters(one), other.state_dict())
    with torch.no_grad():
        next(one.parameters()).add_(1.0)
    assert same(parameters(other), problem.base_host().state_dict())


def test_seeds_decide_the_start():
    first, again, other = (Problem(walks(), replace(SMALL, seed=seed)) for seed in (0, 0, 1))
    assert same(parameters(first.new_host()), again.new_host().state_dict())
    assert not same(parameters(first.new_host()), other.new_host().state_dict())
    host = first.new_host()
    assert same(parameters(first.new_editor(host)), again.new_editor(host).state_dict())


def test_an_unknown_method_is_answered_with_the_nearest(problem):
    with pytest.raises(ConfigError, match="unknown method 'persona_heldback': did you mean 'persona_held_back'"):
        train_method("persona_heldback", problem)


def checkpoints(folder):
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}


def test_what_was_trained_and_measured_is_taken_from_the_folder(tmp_path):
    notes = []
    first = measure(Problem(walks(), SMALL, folder=tmp_path), "persona_frozen")
    before = checkpoints(tmp_path)
    assert len(before) == 3  # host, editor, result
    again = Problem(walks(), SMALL, folder=tmp_path, on_epoch=lambda *note: notes.append(note))
    assert equal(measure(again, "persona_frozen"), first)
    assert notes == [], "measuring again does not even open the training"
    train_method("persona_frozen", again)
    assert [(name, row["epoch"]) for name, row in notes] == [
        ("host", 0.0),
        ("host", 1.0),
        ("persona_frozen", 0.0),
        ("persona_frozen", 1.0),
    ]
    assert checkpoints(tmp_path) == before, "the epochs were replayed, not trained"
    assert train_method("host", again).result.seconds > 0, "the time of the training, not of reading it"


def equal(one: Measured, other: Measured) -> bool:
    """Bit for bit, but for the time it took."""
    assert one.per_unit.keys() == other.per_unit.keys()
    for name, values in one.per_unit.items():
        np.testing.assert_array_equal(values, other.per_unit[name])
    np.testing.assert_array_equal(one.units, other.units)
    assert one.summary == other.summary
    return (one.method, one.epochs, one.best_epoch, list(one.history)) == (
        other.method,
        other.epochs,
        other.best_epoch,
        list(other.history),
    )


def test_settings_of_the_editor_share_the_host(tmp_path):
    folders, edited = set(), set()
    for change in ({}, {"transfer": "none"}, {"mode": "joint"}, {"width": 4}, {"editor_learning_rate": 0.1}):
        problem = Problem(walks(), replace(SMALL, **change), folder=tmp_path)
        measure(problem, "host")
        folders.add(problem.trainings.folder_of("host"))
        edited.add(problem.trainings.folder_of("persona_frozen"))
        assert problem.trainings.folder_of("duet") == problem.trainings.folder_of("persona_frozen")
        assert read_json(problem.trainings.folder_of("duet") / "settings.json") == problem.config.editor_settings()
    [folder] = folders
    assert len(edited) == 4, "the mode is part of a method's name, not of its settings"
    assert len(list(tmp_path.rglob("checkpoint.safetensors"))) == 1, "one host was trained"
    assert read_json(folder / "settings.json") == {"data": walks().digest, **SMALL.host_settings()}


@pytest.mark.parametrize("change", [{"seed": 1}, {"epochs": 3}, {"protocol": "time"}, {"dim": 4}, {"negatives": 2}])
def test_other_settings_or_other_data_have_their_own_place(change, tmp_path):
    here = Problem(walks(), SMALL, folder=tmp_path).trainings.folder_of("host")
    assert Problem(walks(), replace(SMALL, **change), folder=tmp_path).trainings.folder_of("host") != here
    assert Problem(walks(seed=1), SMALL, folder=tmp_path).trainings.folder_of("host") != here
    assert Problem(walks(), SMALL, folder=tmp_path).trainings.folder_of("host") == here


def test_without_a_folder_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    problem = Problem(walks(), SMALL)
    assert problem.trainings.folder_of("host") is None
    measure(problem, "finetune_adaptive")
    assert list(tmp_path.iterdir()) == []


COMPARISON = """
import sys
from pathlib import Path
from persona import runtime
runtime.configure()
from recsys.methods import Problem, measure
from tests.recsys.methods.test_methods import KILLED
from tests.recsys.toy import SMALL, walks
problem = Problem(walks(), SMALL, folder=Path(sys.argv[1]), on_epoch=lambda *note: print(*note, flush=True))
for method in KILLED:
    measure(problem, method)
"""
KILLED = ("host", "finetune_all", "persona_held_back")


@pytest.mark.slow
def test_a_comparison_that_is_killed_goes_on_to_the_same_numbers(tmp_path, measured):
    for epochs in (1, 6):  # in the host's second epoch; in the middle of a later method, after what was replayed
        command = [sys.executable, "-c", COMPARISON, str(tmp_path)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        lines = [process.stdout.readline() for _ in range(epochs)]
        process.kill()
        assert process.wait() == -9
        process.stdout.close()
        assert all(lines), "it was still at work"
    done = checkpoints(tmp_path)
    assert done
    problem = Problem(walks(), SMALL, folder=tmp_path)
    for name in KILLED:
        assert equal(measure(problem, name), measured[name])
