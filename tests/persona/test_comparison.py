import json
from dataclasses import replace

import numpy as np
import pytest

from persona.bootstrap import paired_bootstrap
from persona.comparison import Measured, compare, differences, labelled, metric_name, with_host
from persona.errors import ConfigError, DataError

UNITS = np.array([2, 3, 5, 8], dtype=np.int64)


def measured(method, values, *, seconds=1.0, units=UNITS):
    per_unit = {"uauc": np.asarray(values, dtype=np.float64), "hr_10": np.asarray(values, dtype=np.float64) / 2}
    summary = {name: float(v.mean()) for name, v in per_unit.items()}
    return Measured(method, summary, per_unit, units, seconds, 128, 3, 2, [{"epoch": 0.0, "loss": 0.7}])


HOST = measured("host", [0.1, 0.2, 0.3, 0.4])
BETTER = measured("better", [0.2, 0.4, 0.35, 0.5], seconds=3.0)


def test_a_result_survives_its_files(tmp_path):
    BETTER.save(tmp_path)
    again = Measured.load(tmp_path, "better")
    assert again.summary == BETTER.summary
    assert (again.seconds, again.refresh_bytes, again.epochs, again.best_epoch) == (3.0, 128, 3, 2)
    assert list(again.history) == list(BETTER.history)
    np.testing.assert_array_equal(again.units, UNITS)
    assert again.per_unit.keys() == BETTER.per_unit.keys()
    for name, values in BETTER.per_unit.items():
        np.testing.assert_array_equal(again.per_unit[name], values)
        assert again.per_unit[name].dtype == np.float64


def test_a_result_exists_only_when_both_files_do(tmp_path):
    assert not Measured.exists(tmp_path, "better")
    BETTER.save(tmp_path)
    assert Measured.exists(tmp_path, "better")
    (tmp_path / "better.json").unlink()  # what a process killed between the two files leaves
    assert not Measured.exists(tmp_path, "better")
    with pytest.raises(DataError, match="no result of 'better'"):
        Measured.load(tmp_path, "better")


def test_rows_are_means_over_seeds_and_differences_their_bootstrap():
    other_host = measured("host", [0.0, 0.2, 0.2, 0.4])
    other_better = measured("better", [0.3, 0.3, 0.3, 0.3], seconds=5.0)
    host, better = compare([{"host": HOST, "better": BETTER}, {"host": other_host, "better": other_better}])
    assert host.method == "host"
    assert host.differences == {}
    assert host.metrics["uauc"] == pytest.approx((0.25 + 0.2) / 2)
    assert better.seconds == pytest.approx(4.0)
    assert better.refresh_bytes == 128
    mean_of_seeds = np.array([[0.1, 0.2, 0.05, 0.1], [0.3, 0.1, 0.1, -0.1]]).mean(axis=0)
    expected = paired_bootstrap(mean_of_seeds, np.zeros(4))
    found = better.differences["uauc"]
    assert found.interval.mean == pytest.approx(expected.mean)
    assert found.interval.low == pytest.approx(expected.low)
    assert found.interval.high == pytest.approx(expected.high)
    assert found.seed_means == pytest.approx((0.1125, 0.1))
    assert better.differences["hr_10"].interval.mean == pytest.approx(expected.mean / 2)


def test_any_two_methods_can_be_compared():
    forth = differences([BETTER], [HOST])["uauc"].interval
    back = differences([HOST], [BETTER])["uauc"].interval
    assert forth.mean == pytest.approx(-back.mean)
    assert differences([HOST], [HOST])["uauc"].interval.high == 0.0


def test_a_row_is_plain_json():
    row = compare([{"host": HOST, "better": BETTER}])[1]
    value = json.loads(json.dumps(row.as_dict()))
    assert value["differences"]["uauc"]["mean"] == pytest.approx(0.1125)
    assert value["method"] == "better"


def test_seeds_may_choose_differently():
    seeds = [{"host": HOST, "better": replace(BETTER, chosen={mode: 1.0})} for mode in ("held_back", "joint")]
    assert compare(seeds)[1].chosen == ({"held_back": 1.0}, {"joint": 1.0})


def test_gains_are_single_numbers_under_the_names_of_their_protocol():
    row = compare([{"host": HOST, "better": BETTER}])[1]
    gains = row.gains("time")
    interval = row.differences["uauc"].interval
    assert gains["time/uauc_vs_host"] == interval.mean
    assert (gains["time/uauc_vs_host_low"], gains["time/uauc_vs_host_high"]) == (interval.low, interval.high)
    logged = row.logged("time")
    assert gains.items() <= logged.items()
    assert logged["time/uauc"] == row.metrics["uauc"]
    assert logged["refresh_bytes"] == row.refresh_bytes


def test_the_protocol_is_part_of_a_name():
    assert metric_name("time", "ndcg@10") == "time/ndcg_10"


@pytest.mark.parametrize(("protocol", "metric"), [("time", "ndcg#10"), ("", "auc"), ("time", ""), ("time", "a/b")])
def test_names_mlflow_would_refuse_are_refused(protocol, metric):
    with pytest.raises(ConfigError, match="cannot be logged"):
        metric_name(protocol, metric)


def test_the_host_and_rivals_are_always_among_the_methods():
    known = ["host", "duet", "apg"]
    assert with_host([], known) == known
    assert with_host(["duet"], known) == ["host", "duet"]
    assert with_host(["duet", "host", "duet"], known) == ["duet", "host"]
    assert with_host(["duet"], known, ["apg"]) == ["host", "apg", "duet"]
    assert with_host(["duet", "host", "apg"], known, ["apg"]) == ["duet", "host", "apg"]
    assert with_host([], known, ["apg"]) == known
    with pytest.raises(ConfigError, match="unknown method 'duett': did you mean 'duet'"):
        with_host(["host", "duett"], known)


@pytest.mark.parametrize(
    ("seeds", "error", "sentence"),
    [
        ([], DataError, "nothing to compare"),
        ([{"better": BETTER}], ConfigError, "the reference 'host' was not measured: "),
        ([{"host": HOST, "better": BETTER}, {"host": HOST}], DataError, "different methods"),
        ([{"host": HOST, "better": replace(BETTER, units=UNITS + 1)}], DataError, "different units"),
    ],
)
def test_what_cannot_be_compared_is_refused(seeds, error, sentence):
    with pytest.raises(error, match=sentence):
        compare(seeds)


def test_seeds_with_different_units_are_refused():
    moved = {name: replace(m, units=UNITS + 1) for name, m in (("host", HOST), ("better", BETTER))}
    with pytest.raises(DataError, match="different units"):
        compare([{"host": HOST, "better": BETTER}, moved])


def test_metrics_are_named_by_protocol_and_label():
    whole, alone = measured("whole", [0.1, 0.2]), measured("alone", [0.3, 0.4])
    found = labelled("time", {"": whole, "prototype": alone}, [*whole.per_unit, "unheard of"])
    names = [f"{prefix}/{metric}" for prefix in ("time", "time prototype") for metric in whole.per_unit]
    assert list(found) == names
