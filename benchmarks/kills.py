"""Random kills: a worker of a training on two processes is killed at random moments, and the result has to be the undisturbed one.

A host with a sharded table is trained by ``torchrun --max-restarts`` on a small synthetic log, with a checkpoint every few steps.
Once it is left alone; then, run by run, one of its workers, drawn at random, gets SIGKILL at a moment drawn from as long as the
undisturbed run took: while it starts, reads, trains, validates, or writes a checkpoint. The checkpoints that are left in the end
have to be the same ones, with the same bits in every tensor of model and optimizers. (Which rank's file a tensor that all ranks
have is written to is up to torch.distributed.checkpoint.)

    python -m benchmarks.kills --kills 20 --a-run 5
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from persona import runtime

runtime.set_environment()

USERS, EVENTS, ITEMS = 400, 15, 500
STEPS = 20  # between checkpoints
PROCESSES = 2
EVIDENCE = Path("docs/evidence/kills.json")
TRAINING = (
    "--preset paper --host gru4rec --protocol paper --dim 16 --batch-size 64 --epochs 6 --patience 6 --table-optimizer rowwise_adagrad "
    f"--checkpoint-steps {STEPS}"
)


def persona(work: Path, *arguments: str, torchrun: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
    """A command of persona in the folder ``work``, whose store is there, too."""
    store = f"sqlite:///{work}/mlruns/mlflow.db"
    module = ["-m", "torch.distributed.run", *torchrun] if torchrun else []
    return subprocess.Popen(
        [sys.executable, *module, "-m", "pipelines.cli", "recsys", *arguments, "--work", str(work / "work")],
        env={**os.environ, "MLFLOW_TRACKING_URI": store, "PYTHONPATH": os.getcwd()},
        stdout=subprocess.DEVNULL,
        stderr=(work / "log").open("ab"),
        start_new_session=True,
    )


def write_log(path: Path) -> None:
    """Users who walk through the catalogue, each at a pace of their own."""
    lines = ["user,item,time"]
    for user in range(USERS):
        step = 1 + user % 7
        lines += [f"u{user},i{(user * 31 + step * event) % ITEMS},{event * USERS + user}" for event in range(EVENTS)]
    path.write_text("\n".join(lines) + "\n")


def prepare(work: Path) -> None:
    """Leave the prepared log and an MLflow store in ``work``, a new folder."""
    (work / "mlruns").mkdir(parents=True)
    write_log(work / "log.csv")
    if persona(work, "prepare", "--data", str(work / "log.csv")).wait():
        raise RuntimeError(f"the log could not be prepared: {(work / 'log').read_text()}")


def workers(process: subprocess.Popen[bytes]) -> list[int]:
    """The processes that torchrun has started and that are alive."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(child) for child in children.read_text().split()] if children.exists() else []


def newest(work: Path) -> str:
    """The newest checkpoint that is complete."""
    return max((path.parent.name for path in work.rglob("checkpoints/[0-9]*/header.json")), default="none")


def train(work: Path, kills: int, draw: random.Random, span: float) -> list[dict[str, object]]:
    """Train, kill a worker up to ``kills`` times, each within ``span`` seconds of a start; returns what was hit."""
    torchrun = ("--standalone", f"--nproc-per-node={PROCESSES}", f"--max-restarts={kills}")
    process, hits, seen = persona(work, "pretrain", *TRAINING.split(), torchrun=torchrun), [], set[int]()
    while len(hits) < kills and process.poll() is None:
        alive = workers(process)
        if len(alive) < PROCESSES or seen & set(alive):
            time.sleep(0.05)
            continue
        seen |= set(alive)
        seconds = draw.uniform(0, span)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            rank = draw.randrange(PROCESSES)
            try:
                os.kill(alive[rank], signal.SIGKILL)
            except ProcessLookupError:  # it has just come to its end by itself
                continue
            hits.append({"after": round(seconds, 1), "worker": rank, "checkpoint": newest(work)})
    if process.wait():
        raise RuntimeError(f"the training did not come to an end: {(work / 'log').read_text()[-2000:]}")
    return hits


def contents(work: Path) -> list[tuple[str, ...]]:
    """What the checkpoints of a finished training hold: tensors, whichever rank's file they are in, and headers but for times."""
    found = []
    for path in sorted(work.rglob("checkpoints/[0-9]*/*")):
        if path.name == "header.json":
            header = json.loads(path.read_text())
            found.append((path.parent.name, path.name, json.dumps({k: v for k, v in header.items() if k != "seconds"})))
            continue
        for name, values in load_file(path).items():
            kind = f"{name} {values.dtype} {values.shape}"
            found.append((path.parent.name, kind, hashlib.sha256(values.tobytes()).hexdigest()))
    return sorted(found)


def main() -> None:
    """Kill, compare, print and keep what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="in all")
    parser.add_argument("--a-run", type=int, default=5, help="at most so many in one training")
    parser.add_argument("--seed", type=int, default=0, help="of moments and workers")
    options = parser.parse_args()
    draw, runs = random.Random(options.seed), []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        prepare(root / "prepared")
        work = shutil.copytree(root / "prepared", root / "undisturbed")
        started = time.monotonic()
        train(work, 0, draw, 0)
        span = time.monotonic() - started
        expected, left = contents(work), options.kills
        print(f"undisturbed: {span:.0f} s, {len(expected)} tensors and headers in its checkpoints", flush=True)
        while left > 0:
            work = shutil.copytree(root / "prepared", root / f"run{len(runs)}")
            started = time.monotonic()
            hits = train(work, min(options.a_run, left), draw, span)
            if not hits:  # the machine has become quicker, and moments after the end hit nothing
                span = min(span, time.monotonic() - started)
            left -= len(hits)
            runs.append({"kills": hits, "equal": contents(work) == expected})
            found = [hit["checkpoint"] for hit in hits]
            print(f"{len(hits)} kills, equal: {runs[-1]['equal']}, newest checkpoints {found}", flush=True)
            keep(span, runs)
    if not all(run["equal"] for run in runs):
        raise SystemExit(1)


def keep(span: float, runs: list[dict[str, Any]]) -> None:
    """Write what was found so far."""
    result = {
        "undisturbed_seconds": round(span, 1),
        "steps_between_checkpoints": STEPS,
        "kills": sum(len(run["kills"]) for run in runs),
        "equal": all(run["equal"] for run in runs),
        "runs": runs,
    }
    EVIDENCE.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
