"""What an engineer reads in MLflow's own pages: the numbers that the commands printed are there."""

from importlib.util import find_spec

import pytest

from tests.browser import pages, workbench
from tests.recsys.toy import write_walks

missing = [str(workbench.CHROMIUM)] * (not workbench.CHROMIUM.exists()) + ["playwright"] * (
    find_spec("playwright") is None
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing), reason=f"needs a browser, and {' and '.join(missing)} is not installed"),
]

SMALL = ("--host", "gru4rec", "--dim", "8", "--max-length", "5", "--width", "8", "--epochs", "1", "--batch-size", "256")


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workbench")
    return workbench.build(folder, write_walks(folder / "films.csv"), (*SMALL, "--methods", "host"), prototypes=1)


@pytest.fixture(scope="module")
def shown(bench):
    """The text of every page, by name."""
    with workbench.ui(bench) as address, pages.browser() as page:
        return {shot.name: pages.visit(page, address, shot) for shot in pages.shots(bench)}


def test_a_pipeline_run_shows_where_its_data_came_from_and_how_it_ended(shown):
    assert "films.csv" in shown["pipeline-run"]
    assert "Finished" in shown["pipeline-run"]


def test_the_comparison_of_two_banks_shows_the_numbers_that_the_command_printed(bench, shown):
    text = shown["comparison"]
    said = bench.said["compare"]
    assert said["overall"]
    for gain in (*said["overall"], *said["segments"]):
        numbers = gain["gain"]
        assert f"{numbers['mean']:+z.4f} [{numbers['low']:+z.4f}, {numbers['high']:+z.4f}]" in text
        assert gain["metric"] in text
    for sentence in said["verdict"]:
        assert sentence in text
    assert f"{said['moves']['moved']} of {said['moves']['units']} users" in text


def test_mlflows_own_comparison_shows_metrics_of_both_versions(bench, shown):
    text = shown["compare-versions"]
    assert "bank/members" in text
    assert "/light/" in text or "/medium/" in text


def test_tables_of_segments_stand_side_by_side(shown):
    assert "tables/segments.json" in shown["tables"]


def test_versions_show_their_aliases_and_tags(bench, shown):
    assert {"champion", "candidate", "bank_version"} <= set(shown["versions"].replace(":", " ").split())


def test_the_lineage_shows_every_version_and_the_champions(bench, shown):
    for version in bench.said["lineage"]["versions"]:
        assert f"Version {version['number']}" in shown["lineage"]
    assert "champion since" in shown["lineage"]
