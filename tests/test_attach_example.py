"""The story that README tells of a module of one's own, run as it stands."""

import ast
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import torch

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "attach.py"


def test_a_few_lines_edit_group_refine_and_keep_a_module(tmp_path):
    spec = spec_from_file_location("attach_example", EXAMPLE)
    example = module_from_spec(spec)
    spec.loader.exec_module(example)
    model = example.trained_model()
    told = example.story(model, str(tmp_path / "kept"))
    assert told["host"] > 2
    assert told["edited"] < 0.1 * told["host"]
    pairs = set(zip(told["found"].tolist(), told["group"].tolist(), strict=True))
    assert len(pairs) == 4
    assert len({prototype for prototype, _ in pairs}) == 4
    past, x, y, _ = example.devices(400, seed=1)
    again = torch.nn.functional.mse_loss(told["again"](past, x), y)
    assert torch.isclose(again, torch.tensor(told["edited"]))
    assert told["again"].bank.version == told["moved"].bank.version


def test_the_story_has_fifteen_lines_at_most():
    tree = ast.parse(EXAMPLE.read_text(encoding="utf-8"))
    story = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "story")
    lines = story.body[-1].end_lineno - story.body[1].lineno + 1  # without the docstring
    assert lines <= 15
