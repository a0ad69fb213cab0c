"""Steps are written once for all tasks: none asks which task it has."""

import ast
from pathlib import Path

import pytest

from persona.task import found_at
from recsys.task import RECSYS
from vision.task import VISION

STEPS = sorted((Path(__file__).parents[3] / "pipelines" / "steps").glob("*.py"))


@pytest.mark.parametrize("path", STEPS, ids=lambda path: path.stem)
def test_no_step_asks_for_the_name_of_its_task(path):
    compared = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Compare)]
    sides = [ast.unparse(side) for node in compared for side in (node.left, *node.comparators)]
    assert not [side for side in sides if side.endswith("task.name") or side in ("RECSYS.name", "VISION.name")]


@pytest.mark.parametrize("task", [RECSYS, VISION], ids=lambda task: task.name)
def test_a_task_is_found_again_and_names_what_it_has(task):
    assert found_at(task.place) is task
    settings = task.config()
    assert settings.protocol in task.protocols
    assert set(task.deciding) <= set(task.compared)
    assert all(hasattr(settings, name) for name in task.tagged)
    assert settings.epochs_of("host") >= 1
    assert "host" in task.methods()
