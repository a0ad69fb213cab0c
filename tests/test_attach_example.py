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
    host, edited, found, group, moved, again = example.story(model, str(tmp_path / "kept"))
    assert host > 2
    assert edited < 0.1 * host
    pairs = set(zip(found.tolist(), group.tolist(), strict=True))
    assert len(pairs) == len({prototype for prototype, _ in pairs}) == 4
    past, x, y, _ = example.devices(400, seed=1)
    assert torch.isclose(torch.nn.functional.mse_loss(again(past, x), y), torch.tensor(edited))
    assert again.bank.version == moved.bank.version


def test_the_story_has_fifteen_lines_at_most():
    tree = ast.parse(EXAMPLE.read_text(encoding="utf-8"))
    story = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "story")
    lines = story.body[-1].end_lineno - story.body[1].lineno + 1  # without the docstring
    assert lines <= 15
