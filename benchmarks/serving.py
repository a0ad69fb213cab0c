"""The service over HTTP, on the cores that its client uses as well.

    python -m benchmarks.serving speed [--items 3700] [--rival]
    python -m benchmarks.serving users
    python -m benchmarks.serving overload
    python -m benchmarks.serving swaps [--minutes 10]

* speed: personalised top ten from 8 connections; with ``--rival`` against `mlflow models serve` on the same bundle, by turns;
* users: the same with 1, 1,000 and 100,000 distinct histories, by turns with a server that answers all alike;
* overload: three times as many connections as the queue takes, against 8;
* swaps: another version every second, every fourth of them corrupt, each answer compared with one computed alone.

The load comes from wrk. Requests a second depend on what else the machine does; processor time a request does so much less.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from pipelines.serving.config import ServingConfig
from recsys.serving.recommender import Recommender

CONNECTIONS = 8
LENGTH = 10
START_SECONDS = 180
TOLERANCE = 1e-3
# Histories are made before the load begins: making them meanwhile would take the time of the service, the more so the more differ.
LOAD = """
local n, requests = 0, {}
local headers = {["Content-Type"] = "application/json"}
local path, before, after = "/v1/recommendations", '{"history":', ',"k":10}'
if os.getenv("KIND") == "rival" then
  path, before, after = "/invocations", '{"dataframe_split":{"columns":["history"],"data":[[', ']]},"params":{"k":10}}'
end
init = function()
  for history in io.lines(os.getenv("HISTORIES")) do
    requests[#requests + 1] = wrk.format("POST", path, headers, before .. history .. after)
  end
end
request = function()
  n = n + 7919
  return requests[n % #requests + 1]
end
done = function(summary, latency)
  io.write(string.format('\\n{"requests": %d, "seconds": %f, "failed": %d, "p50": %f, "p99": %f}\\n', summary.requests,
    summary.duration / 1e6, summary.errors.status + summary.errors.timeout + summary.errors.read,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
"""


class Server:
    """A process that serves on a port of its own."""

    def __init__(self, command: list[str], port: int, probe: str) -> None:
        self.url, start = f"http://127.0.0.1:{port}", time.monotonic()
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        while not self._answers(probe):
            if self.process.poll() is not None or time.monotonic() - start > START_SECONDS:
                raise SystemExit(f"{' '.join(command)} did not start")
            time.sleep(0.05)
        self.start_seconds = time.monotonic() - start

    def _answers(self, path: str) -> bool:
        try:
            with urllib.request.urlopen(self.url + path, timeout=30):
                return True
        except OSError:
            return False

    def cpu_seconds(self) -> float:
        """Of the process and those it started."""
        total = 0.0
        for pid in self._family():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return total

    def resident_mib(self) -> float:
        """Of the process and those it started."""
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self._family())
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def _family(self) -> list[int]:
        found = [self.process.pid]
        for pid in found:
            found += [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return found

    def stop(self) -> None:
        """End it, and what it started."""
        os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait(60)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def service(folder: Path, *options: str) -> Iterator[Server]:
    """`persona serve` on a bundle."""
    port = free_port()
    command = [sys.executable, "-m", "pipelines.cli", "serve", "--model", str(folder), "--port", str(port), *options]
    running = Server(command, port, "/readyz")
    try:
        yield running
    finally:
        running.stop()


@contextmanager
def constant() -> Iterator[Server]:
    """A server that reads every request and answers all of them alike."""
    port = free_port()
    running = Server([sys.executable, "-m", "benchmarks._constant", "--port", str(port)], port, "/")
    try:
        yield running
    finally:
        running.stop()


@contextmanager
def rival(folder: Path) -> Iterator[Server]:
    """`mlflow models serve` on the same bundle."""
    os.environ |= {
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # mlflow looks for uvicorn there
    }
    import mlflow

    from pipelines.tracking.registry import signature
    from recsys.task import RECSYS

    port, root = free_port(), Path(__file__).parents[1]
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "model"
        mlflow.pyfunc.save_model(
            model,
            python_model=str(root / "pipelines" / "tracking" / "pyfunc_recommender.py"),
            artifacts={"bundle": str(folder)},
            code_paths=[str(root / "persona"), str(root / "recsys")],
            signature=signature(RECSYS.interface, None),  # without it every request that names k logs a warning
            pip_requirements=[],
        )
        command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(model), "--env-manager", "local"]
        running = Server([*command, "-h", "127.0.0.1", "-p", str(port)], port, "/ping")
        try:
            yield running
        finally:
            running.stop()


def bundle(root: Path, items: int, seed: int = 0) -> Path:
    """A bundle of this size, made by another process, so that this one stays small."""
    folder = root / f"bundle-{items}-{seed}"
    command = [sys.executable, "-m", "benchmarks._bundles", str(folder), "--items", str(items), "--seed", str(seed)]
    subprocess.run(command, check=True)
    return folder


def load(
    server: Server,
    items: int,
    *,
    seconds: float,
    users: int = 1000,
    connections: int = CONNECTIONS,
    kind: str = "service",
) -> dict[str, float]:
    """Requests a second, milliseconds, and processor time a request under wrk."""
    draw = random.Random(0)
    histories = [json.dumps([str(draw.randint(1, items)) for _ in range(LENGTH)]) for _ in range(users)]
    with (
        tempfile.NamedTemporaryFile("w", suffix=".lua") as script,
        tempfile.NamedTemporaryFile("w", suffix=".txt") as lines,
    ):
        script.write(LOAD)
        script.flush()
        lines.write("\n".join(histories))
        lines.flush()
        before = server.cpu_seconds()
        done = subprocess.run(
            ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "10s", "-s", script.name, server.url],
            env=os.environ | {"HISTORIES": lines.name, "KIND": kind},
            capture_output=True,
            text=True,
            check=True,
        )
    found = json.loads(done.stdout.strip().splitlines()[-1])
    cpu_ms = 1e3 * (server.cpu_seconds() - before)
    return {
        "requests_per_second": found["requests"] / found["seconds"],
        "answers_per_second": (found["requests"] - found["failed"]) / found["seconds"],
        "failed": found["failed"],
        "p50_ms": found["p50"],
        "p99_ms": found["p99"],
        "cpu_ms_per_request": cpu_ms / max(1, found["requests"]),
        "cpu_ms_per_answer": cpu_ms / max(1, found["requests"] - found["failed"]),
    }


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    """The median of every number."""
    return {name: round(statistics.median(run[name] for run in runs), 3) for name in runs[0]}


def speed(root: Path, arguments: argparse.Namespace) -> dict[str, object]:
    """Alone, or by turns with the rival."""
    folder = arguments.bundle or bundle(root, arguments.items)
    report: dict[str, object] = {"items": arguments.items, "connections": CONNECTIONS}
    with service(folder) as own:
        report["start_seconds"] = round(own.start_seconds, 2)
        load(own, arguments.items, seconds=1)
        if not arguments.rival:
            runs = [load(own, arguments.items, seconds=arguments.seconds) for _ in range(arguments.rounds)]
        else:
            with rival(folder) as other:
                load(other, arguments.items, seconds=1, kind="rival")
                runs, others = [], []
                for _ in range(arguments.rounds):
                    runs.append(load(own, arguments.items, seconds=arguments.seconds))
                    others.append(load(other, arguments.items, seconds=arguments.seconds, kind="rival"))
                pairs = zip(runs, others, strict=True)
                ratios = [a["requests_per_second"] / b["requests_per_second"] for a, b in pairs]
                report["rival"] = medians(others) | {"resident_mib": round(other.resident_mib())}
                report["times_the_rival"] = round(statistics.median(ratios), 2)
        report["service"] = medians(runs) | {"resident_mib": round(own.resident_mib())}
    return report


def users(root: Path, arguments: argparse.Namespace) -> dict[str, object]:
    """How much it matters whether users repeat; a server that answers all alike shows what of that is the client's."""
    folder = arguments.bundle or bundle(root, arguments.items)
    counts = (1, 1_000, 100_000)
    with service(folder) as own, constant() as control:
        load(own, arguments.items, seconds=1)
        servers = {"service": own, "control": control}
        runs: dict[str, dict[int, list[dict[str, float]]]] = {name: {u: [] for u in counts} for name in servers}
        for _ in range(arguments.rounds):
            for count in counts:
                for name, server in servers.items():
                    runs[name][count].append(load(server, arguments.items, seconds=arguments.seconds, users=count))
    report: dict[str, object] = {}
    for name, by_count in runs.items():
        found = {count: medians(own) for count, own in by_count.items()}
        rates = [one["requests_per_second"] for one in found.values()]
        times = [one["cpu_ms_per_request"] for one in found.values()]
        worst = {"worst_of_best": round(min(rates) / max(rates), 3), "by_cpu": round(min(times) / max(times), 3)}
        report[name] = {"distinct_users": found, **worst}
    return report


def overload(root: Path, arguments: argparse.Namespace) -> dict[str, object]:
    """Answers a second, and by processor time, when far more is asked than the queue takes."""
    folder = arguments.bundle or bundle(root, arguments.items)
    many = 3 * ServingConfig().queue
    with service(folder) as own:
        load(own, arguments.items, seconds=1)
        normal, flooded = [], []
        for _ in range(arguments.rounds):
            normal.append(load(own, arguments.items, seconds=arguments.seconds, connections=64))
            flooded.append(load(own, arguments.items, seconds=arguments.seconds, connections=many))
    pairs = list(zip(flooded, normal, strict=True))
    kept = statistics.median(a["answers_per_second"] / b["answers_per_second"] for a, b in pairs)
    by_cpu = statistics.median(b["cpu_ms_per_answer"] / a["cpu_ms_per_answer"] for a, b in pairs)
    return {
        "connections_64": medians(normal),
        f"connections_{many}": medians(flooded),
        "kept": round(kept, 3),
        "kept_by_cpu": round(by_cpu, 3),
    }


class Releases(threading.Thread):
    """Puts another bundle into ``place`` every second, every fourth of them corrupt."""

    def __init__(self, place: Path, bundles: list[Path]) -> None:
        super().__init__()
        self.place, self.bundles = place, bundles
        self.counts, self.over = {"sound": 0, "corrupt": 0}, threading.Event()
        shutil.copytree(bundles[0], place)

    def run(self) -> None:
        """Until ``over``."""
        new, old = self.place.with_name("new"), self.place.with_name("old")
        turn = 0
        while not self.over.wait(1.0):
            turn += 1
            shutil.copytree(self.bundles[turn % len(self.bundles)], new)
            corrupt = turn % 4 == 3
            if corrupt:
                header = new / "bundle.json"
                header.write_text(header.read_text().replace("{", f'{{"turn": {turn},', 1))
                (new / "compiled" / "rank.onnx").write_bytes(bytes(1000))
            self.place.rename(old)
            new.rename(self.place)
            shutil.rmtree(old)
            self.counts["corrupt" if corrupt else "sound"] += 1


class Checked:
    """Load whose every answer is compared with one that was computed alone."""

    def __init__(self, bundles: list[Path], items: int) -> None:
        self.histories = [[str((31 * i * (j + 1)) % items + 1) for j in range(LENGTH)] for i in range(200)]
        self.wanted = {}
        for folder in bundles:
            reference = Recommender.load(folder)
            answers = reference.recommend_many(self.histories)
            self.wanted[reference.bank] = [
                ([item.item_id for item in answer.items], [item.score for item in answer.items]) for answer in answers
            ]
        self.counts = {"right": 0, "wrong": 0, "lost": 0}
        self.by_version = dict.fromkeys(self.wanted, 0)

    async def run(self, url: str, seconds: float) -> None:
        """Ask from all connections for so long."""
        end = time.monotonic() + seconds
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            await asyncio.gather(*(self._ask(client, i, end) for i in range(CONNECTIONS)))

    async def _ask(self, client: httpx.AsyncClient, turn: int, end: float) -> None:
        while time.monotonic() < end:
            turn = (turn + CONNECTIONS) % len(self.histories)
            try:
                answer = await client.post("/v1/recommendations", json={"history": self.histories[turn]})
                content = answer.json()
                items, scores = self.wanted[content["bank"]][turn]
            except (httpx.HTTPError, KeyError, ValueError):
                self.counts["lost"] += 1
                continue
            same = [item["id"] for item in content["items"]] == items
            close = all(abs(item["score"] - s) < TOLERANCE for item, s in zip(content["items"], scores, strict=True))
            self.counts["right" if same and close else "wrong"] += 1
            self.by_version[content["bank"]] += 1


def swaps(root: Path, arguments: argparse.Namespace) -> dict[str, object]:
    """Right, wrong and lost answers while versions change."""
    bundles = [bundle(root, arguments.items, seed) for seed in range(3)]
    checked, releases = Checked(bundles, arguments.items), Releases(root / "served", bundles)
    with service(releases.place, "--poll", "0.2") as own:
        releases.start()
        try:
            asyncio.run(checked.run(own.url, 60 * arguments.minutes))
        finally:
            releases.over.set()
            releases.join()
    report = {"answers": checked.counts, "released": releases.counts}
    return report | {"answers_by_version": list(checked.by_version.values())}


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = {"speed": speed, "users": users, "overload": overload, "swaps": swaps}
    parser.add_argument("what", choices=kinds, nargs="?", default="speed")
    parser.add_argument("--items", type=int, default=3700)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rival", action="store_true", help="also measure mlflow models serve")
    parser.add_argument("--bundle", type=Path, help="a bundle that is there already")
    arguments = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is needed: apt-get install wrk")
    with tempfile.TemporaryDirectory() as root:
        print(json.dumps(kinds[arguments.what](Path(root), arguments), indent=2))


if __name__ == "__main__":
    main()
