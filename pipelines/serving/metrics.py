"""What Prometheus is told: requests and their times, batches, queue, versions. Nothing of what requests say."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

# The time at which every series began, beside each of them, would double what is told.
disable_created_metrics()  # type: ignore[no-untyped-call]
SECONDS = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
OTHER = "other"


class Metrics:
    """The measures of one service, in a registry of their own.

    Args:
        paths: that are told apart; all others count as one, for anybody can ask for any path.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, paths: frozenset[str]) -> None:
        self.paths = paths
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        requests = Counter(
            "persona_requests_total", "Requests by path and status.", ["path", "status"], registry=self.registry
        )
        seconds = Histogram(
            "persona_request_seconds",
            "From the head of a request to the end of its answer.",
            ["path"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._rows = Histogram("persona_batch_rows", "Requests of a batch.", buckets=ROWS, registry=self.registry)
        self._batch = Histogram("persona_batch_seconds", "Computing a batch.", buckets=SECONDS, registry=self.registry)
        self._versions = Counter(
            "persona_versions_total", "Versions that were tried, by outcome.", ["outcome"], registry=self.registry
        )
        self._requests, self._seconds = requests, seconds
        self._counters: dict[tuple[str, int], Counter] = {}
        self._timers = {path: seconds.labels(path) for path in {*paths, OTHER}}

    def watch(self, waiting: Callable[[], int], ready: Callable[[], bool]) -> None:
        """Tell the length of the queue, and readiness, whenever they are asked for."""
        Gauge("persona_queue", "Requests that wait.", registry=self.registry).set_function(waiting)
        Gauge("persona_ready", "Whether there is a model.", registry=self.registry).set_function(lambda: float(ready()))

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count one request."""
        place = path if path in self.paths else OTHER
        counter = self._counters.get((place, status))
        if counter is None:
            counter = self._counters[place, status] = self._requests.labels(place, str(status))
        counter.inc()
        self._timers[place].observe(seconds)

    def batch(self, rows: int, seconds: float) -> None:
        """Count one batch."""
        self._rows.observe(rows)
        self._batch.observe(seconds)

    def version(self, outcome: str) -> None:
        """Count a version that was tried."""
        self._versions.labels(outcome).inc()

    def text(self) -> bytes:
        """What Prometheus reads."""
        return generate_latest(self.registry)
