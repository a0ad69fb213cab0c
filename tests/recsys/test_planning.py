"""Plans of logs of any size: they add up, grow as they should, and say what does not fit."""

import json
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest

from persona.errors import ConfigError, FormatError
from pipelines.cli import main
from recsys.planning import GIB, Cluster, Workload, dense_parameters, lay_out, plan

ROOT = Path(__file__).parents[2]
WORK = Workload(users=1_000_000, items=10_000_000, events=50_000_000, dimension=32, preset="paper")
CPU = Cluster(devices=1, memory_gib=8, kind="cpu")


def values(work, cluster):
    return {line.what.split(",")[0].split(" (")[0]: line for line in plan(work, cluster, ROOT / "docs" / "evidence")}


def test_two_processes_hold_half_of_the_table_each():
    one, two = (lay_out(WORK, replace(CPU, devices=n), 10) for n in (1, 2))
    table = (WORK.items + 1) * 32 * 4
    assert one.sharding == "table_wise"
    assert two.sharding == "row_wise"
    # The row-wise optimizer adds a float a row; buffers of the exchange come on top.
    assert table + 4 * WORK.items <= one.bytes_a_device <= 1.1 * (table + 4 * WORK.items)
    assert two.bytes_a_device == pytest.approx(one.bytes_a_device / 2, rel=0.01)


def test_what_does_not_fit_is_told_with_how_many_devices_would_do():
    large = replace(WORK, items=1_000_000_000, dimension=64)
    gpus = Cluster(devices=2, memory_gib=80)
    with pytest.raises(ConfigError, match=r"238\.4 GiB does not fit 2 device\(s\) of 80 GiB: 4 would do"):
        lay_out(large, gpus, 10)
    assert lay_out(large, replace(gpus, devices=4), 10).bytes_a_device < 80 * GIB
    with pytest.raises(ConfigError, match="give devices with more memory"):
        lay_out(large, replace(gpus, memory_gib=0.001), 10)


def test_time_and_money_follow_from_rows_and_devices():
    cluster = Cluster(devices=4, memory_gib=80, price=3.0, rows_per_second=100_000, efficiency=0.5)
    found = values(WORK, cluster)
    hours = found["training"].value
    # Lookups and exchange come on top of the rows a second.
    assert hours > WORK.events / (4 * 0.5 * 100_000) / 3600
    assert found["device-hours"].value == pytest.approx(4 * hours)
    assert found["cost of training"].value == pytest.approx(12 * hours)
    twice = values(replace(WORK, epochs=2), cluster)
    assert twice["training"].value == pytest.approx(2 * hours)
    assert "cost of training" not in values(WORK, replace(cluster, price=0.0))


def test_sizes_grow_with_what_they_are_sizes_of():
    small, large = values(WORK, CPU), values(replace(WORK, events=10 * WORK.events), CPU)
    assert large["log in Parquet"].value == pytest.approx(10 * small["log in Parquet"].value)
    assert large["prepare"].value >= small["prepare"].value
    assert large["item table"] == small["item table"]
    assert small["item table"].value == pytest.approx(WORK.items * 32 * 4 / GIB)
    more = values(replace(WORK, users=100 * WORK.users), CPU)
    names = [line.what for line in plan(WORK, CPU, ROOT / "docs" / "evidence")]
    assert len(names) == len(set(names))
    assert more["statistics of a refinement"].value == pytest.approx(100 * small["statistics of a refinement"].value)


def test_the_dense_part_does_not_grow_with_the_catalogue():
    assert dense_parameters(WORK) == dense_parameters(replace(WORK, items=5)) > 1000
    assert dense_parameters(replace(WORK, dimension=64)) > dense_parameters(WORK)


def test_what_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="users is 0"):
        replace(WORK, users=0)
    with pytest.raises(ConfigError, match="positive"):
        Cluster(devices=0)
    with pytest.raises(ConfigError, match="efficiency"):
        Cluster(efficiency=2.0)
    with pytest.raises(FormatError, match="run the step"):
        plan(WORK, CPU, tmp_path)
    (tmp_path / "scale-prepare.json").write_text("[]")
    with pytest.raises(FormatError, match="run the benchmarks again"):
        plan(WORK, CPU, tmp_path)


def test_the_command_prints_a_plan():
    given = ["--users", "1000", "--items", "100000", "--events", "10000000", "--cpu", "--memory", "4", "--gpus", "2"]
    arguments = ["recsys", "plan", *given, "--measured", str(ROOT / "docs" / "evidence")]
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()):
        assert main([*arguments, "--json"]) == 0
    lines = json.loads(out.getvalue())
    assert {line["basis"] for line in lines} >= {"planner", "arithmetic"}
    assert any(line["what"].startswith("tables a device (row_wise") for line in lines)
