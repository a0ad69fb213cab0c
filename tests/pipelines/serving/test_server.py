"""The service as a process: start, load while versions change, end."""

import asyncio
import json
import shutil
import signal
import subprocess
import sys
import threading
import time

import httpx
import pytest

from recsys.serving.recommender import Recommender
from tests.pipelines.serving.conftest import PATIENCE, Process
from tests.pipelines.serving.toy import IDS, bank_version, write_bundle

pytestmark = pytest.mark.slow

SEEDS = (0, 1, 2)
HISTORIES = [[IDS[(7 * i + j * (i + 1)) % len(IDS)] for j in range(1 + i % 5)] for i in range(20)]


def put(folder, seed, corrupt=False):
    """Exchange the bundle at once, as ``persona recsys release`` does."""
    new, old = folder.with_name(f"new-{seed}"), folder.with_name("old")
    write_bundle(new, seed)
    if corrupt:
        (new / "compiled" / "rank.onnx").write_bytes(b"nonsense")
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    """What every version has to answer, computed one by one."""
    root = tmp_path_factory.mktemp("references")
    found = {}
    for seed in SEEDS:
        recommender = Recommender.load(write_bundle(root / str(seed), seed))
        answers = [recommender.recommend(history, 5) for history in HISTORIES]
        found[bank_version(seed)] = [([i.item_id for i in a.items], [i.score for i in a.items]) for a in answers]
    return found


async def load(url, seconds, errors):
    """Ask from eight connections; how many answers came by bank version, each checked by ``errors``."""
    counts: dict[str, int] = {}
    end = time.monotonic() + seconds

    async def ask(client, turn):
        while time.monotonic() < end:
            turn = (turn + 3) % len(HISTORIES)
            answer = await client.post("/v1/recommendations", json={"history": HISTORIES[turn], "k": 5})
            content = answer.json()
            errors(turn, answer.status_code, content)
            counts[content["bank"]] = counts.get(content["bank"], 0) + 1

    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client:
        await asyncio.gather(*(ask(client, i) for i in range(8)))
    return counts


def test_answers_stay_right_while_versions_change_and_some_are_corrupt(tmp_path, references):
    folder = tmp_path / "bundle"
    put(folder, SEEDS[0])
    running = Process(folder, tmp_path / "log", "--poll", "0.1")
    stop = threading.Event()

    def release():
        turn = 0
        while not stop.wait(0.4):
            turn += 1
            put(folder, SEEDS[turn % len(SEEDS)], corrupt=turn % 4 == 3)

    def check(turn, status, content):
        assert status == 200, content
        items, scores = references[content["bank"]][turn]
        assert [item["id"] for item in content["items"]] == items
        assert [item["score"] for item in content["items"]] == pytest.approx(scores, rel=1e-4, abs=1e-5)

    try:
        running.wait()
        releasing = threading.Thread(target=release)
        releasing.start()
        counts = asyncio.run(load(running.url, 6, check))
        stop.set()
        releasing.join()
        metrics = running.get("/metrics").decode()
        assert len(counts) >= 2, counts
        assert 'persona_versions_total{outcome="refused"}' in metrics
        assert running.stop() == 0
    finally:
        stop.set()
        running.process.kill()
        running.process.wait(PATIENCE)
    assert "Traceback" not in running.log.read_text()


def test_a_drain_answers_everything_it_has_taken(bundle, tmp_path):
    running = Process(bundle, tmp_path / "log", "--drain", "1.0")
    try:
        running.wait()
        answers = []

        def ask():
            for _ in range(30):
                try:
                    answers.append(running.post("/v1/recommendations", {"history": ["105"]})["level"])
                except OSError:  # the door is closed, but nothing is lost inside
                    return

        asking = threading.Thread(target=ask)
        asking.start()
        time.sleep(0.1)
        running.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        with pytest.raises(OSError, match="503"):
            running.get("/readyz")
        assert running.process.wait(PATIENCE) == 0
        asking.join()
        assert answers
        assert set(answers) == {"edit"}
    finally:
        running.process.kill()
        running.process.wait(PATIENCE)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--model", "nothing"], "holds no bundle"),
        (["--model", "models:/m"], "models:/NAME@ALIAS"),
        (["--api-keys", "nothing"], "cannot be read"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_sentence(options, sentence, tmp_path):
    command = [sys.executable, "-m", "pipelines.cli", "serve", "--port", "24999"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_neither_torch_nor_mlflow_is_loaded_for_a_folder(bundle):
    code = (
        "import sys, json\n"
        "from pathlib import Path\n"
        "import pipelines.commands.serve\n"
        "from pipelines.serving.app import Service\n"
        "from pipelines.serving.config import ServingConfig\n"
        "from pipelines.serving.recsys.servable import RecommenderTask\n"
        "from pipelines.serving.sources import source_of\n"
        f"Service(RecommenderTask(), source_of({str(bundle)!r}), ServingConfig()).models.refresh()\n"
        "print(json.dumps([m for m in ('torch', 'torchrec', 'mlflow', 'pandas') if m in sys.modules]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert json.loads(done.stdout) == [], done.stderr
