"""Answers of a bundle's folder need neither torch nor MLflow, and few rooms."""

import json
import subprocess
import sys

import numpy as np
from PIL import Image

from tests.pipelines.serving.conftest import bundle, classifier_bundle  # noqa: F401
from tests.recsys.toy import walks

HEAVY = ("torch", "torchrec", "mlflow", "pandas", "matplotlib")
COMMAND = """
import sys
from pipelines.cli import main
code = main(sys.argv[1:])
print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)
raise SystemExit(code)
"""
TRIP = """
import json, sys
from pathlib import Path
import numpy, polars, onnxruntime
before = set(sys.modules)
from pipelines.steps.answers import recommend
recommend(sys.argv[1], history=["105"])
import persona
root = Path(persona.__file__).parents[1]
files = [getattr(m, "__file__", None) for name, m in sys.modules.items() if name not in before]
rooms = {Path(f).parent for f in files if f and Path(f).is_relative_to(root) and ".venv" not in f}
print(json.dumps(sorted(str(room.relative_to(root)) for room in rooms)))
"""


def run(code, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


def test_recommending_loads_nothing_heavy(bundle, tmp_path):  # noqa: F811
    walks().save(tmp_path / "prepared")
    code = COMMAND.format(heavy=HEAVY)
    done = run(code, "recsys", "recommend", "--work", tmp_path, "--user", "u3", "--model", bundle, "--json")
    assert done.stderr.splitlines()[-1] == "[]"
    assert len(json.loads(done.stdout)["history"]) == 12


def test_classifying_loads_nothing_heavy(classifier_bundle, tmp_path):  # noqa: F811
    Image.fromarray(np.full((16, 16), 90, np.uint8)).save(tmp_path / "a.png")
    code = COMMAND.format(heavy=HEAVY)
    done = run(code, "vision", "classify", "--images", tmp_path / "a.png", "--model", classifier_bundle, "--json")
    assert done.stderr.splitlines()[-1] == "[]"
    assert len(json.loads(done.stdout)["classification"]["classes"]) == 1


def test_a_recommendation_goes_through_few_rooms(bundle):  # noqa: F811
    rooms = json.loads(run(TRIP, bundle).stdout)
    assert len(rooms) <= 6, rooms
