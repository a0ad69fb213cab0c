"""Nothing stays behind on the CPU where models lie on a card: the tests of both tasks, each in a process of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fake_card import WANTED

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize("file", ["tests/recsys/test_device.py", "tests/vision/test_device.py"])
def test_nothing_is_left_on_the_cpu(file):
    chosen = "not has_changed and not bf16 and not card_trains"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", file, "-k", chosen],
        cwd=ROOT,
        env={**os.environ, WANTED: "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert re.search(r"\d\d? passed", done.stdout)
    assert "skipped" not in done.stdout
