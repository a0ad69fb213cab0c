import json
import re
from io import StringIO

import mlflow
import pytest
from rich.console import Console

from persona.errors import ConfigError
from pipelines.cli import main
from pipelines.versions import lineage_view, promotion
from tests.persona.prototypes import world
from tests.pipelines.made_versions import BANKS, MODEL, refined, register, register_bank, snapshot
from tests.pipelines.versions.test_comparing import Outline


@pytest.fixture
def client(workplace):
    """A first bank, two refinements in a row, and one that branches off the first; two have been champions."""
    first = world.partition().bank
    second = refined(first, 1)
    register_bank(first, snapshot())
    register_bank(second, snapshot(), tags={"moved_users": "7", "compared.verdict": "No difference."})
    register_bank(refined(second, 2), snapshot())
    register_bank(refined(first, 3), snapshot())
    made = mlflow.MlflowClient()
    for number in (1, 2):
        promotion.promote(made, f"{BANKS}/{number}")
    return made


def test_the_chain_knows_parents_movement_and_champions(client):
    nodes = lineage_view.chain(client, BANKS)
    assert [(node.number, node.parent, node.kind, node.lane) for node in nodes] == [
        (1, None, "fit", 0), (2, 1, "refine", 0), (3, 2, "refine", 0), (4, 1, "refine", 1)
    ]  # fmt: skip
    assert [node.k for node in nodes] == [4] * 4
    assert nodes[0].movement == {}
    assert all(set(node.movement) == {"0", "2"} for node in nodes[1:])
    assert nodes[1].movement["0"] > 0
    assert nodes[1].moved == 7
    first, second = promotion.history(client, BANKS)
    assert nodes[0].reigns == [lineage_view.Reign(first.time, second.time)]
    assert nodes[1].reigns == [lineage_view.Reign(second.time, None)]
    assert nodes[2].crowned() == ""
    assert nodes[1].crowned() == f"champion since {second.time[:16].replace('T', ' ')}"


def test_the_tree_shows_descent(client):
    console = Console(width=200, record=True, file=StringIO())
    console.print(lineage_view.tree(BANKS, lineage_view.chain(client, BANKS)))
    lines = console.export_text().splitlines()
    found = [re.match(r"([│├└─ ]*)(\d+(?: @\w+)?)  ", line) for line in lines]
    depth = {match[2]: len(match[1]) for match in found if match}
    assert list(depth) == ["1", "2 @champion", "3", "4"]
    assert depth["1"] < depth["2 @champion"] == depth["4"] < depth["3"]
    assert any("7 moved" in line for line in lines)
    assert any("No difference." in line for line in lines)


def test_the_command_keeps_one_page_a_model_up_to_date(client, workplace, capsys):
    runs = []
    for _ in range(2):
        assert main(["lineage", BANKS, "--page", "lineage.html", "--json"]) == 0
        runs.append(json.loads(capsys.readouterr().out))
        promotion.rollback(client, BANKS, to=3)
        promotion.rollback(client, BANKS, to=4)
    assert runs[0]["run_id"] == runs[1]["run_id"]
    assert [version["reigns"][-1]["until"] for version in runs[1]["versions"] if version["number"] == 4] == [None]
    text = (workplace / "lineage.html").read_text()
    outline = Outline(text)
    assert outline.open == []
    assert outline.outside == []
    assert text.count("<circle") == 4
    assert text.count('<path class="line"') == 3
    assert "Version 4 @champion" in text
    run = client.get_run(runs[0]["run_id"])
    assert run.info.run_name == f"lineage of {BANKS}"
    table = mlflow.load_table("tables/lineage.json", [run.info.run_id])
    assert table["version"].tolist() == [1, 2, 3, 4]
    assert table["parent"].tolist() == ["-", 1, 2, 1]


def test_a_champion_moved_by_hand_is_said_to_be(client):
    client.set_registered_model_alias(BANKS, "champion", "4")
    nodes = lineage_view.chain(client, BANKS)
    assert nodes[3].crowned() == "champion since unknown (moved by hand)"
    assert nodes[1].crowned().endswith("to unknown (moved by hand)")


def test_a_model_without_banks_is_a_row_of_versions(workplace):
    for _ in range(2):
        register(snapshot())
    client = mlflow.MlflowClient()
    client.set_registered_model_alias(MODEL, "champion", "1")
    nodes = lineage_view.chain(client, MODEL)
    assert [(node.number, node.parent, node.k, node.lane) for node in nodes] == [(1, None, 0, 0), (2, None, 0, 0)]
    assert nodes[0].reigns == [lineage_view.Reign(nodes[0].created, None)]
    assert "Version 2" in lineage_view.page(MODEL, nodes)


def test_an_unknown_model_is_named(workplace):
    register(snapshot())
    with pytest.raises(ConfigError, match="no registered model 'persona-flims': did you mean 'persona-films'"):
        lineage_view.chain(mlflow.MlflowClient(), "persona-flims")
