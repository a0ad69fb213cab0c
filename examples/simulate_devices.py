"""A thousand devices over one day of a real log, against a running service.

    persona recsys run --data movielens-small --protocols time
    persona export --model work/bundle --out film-bundle --policy-data work --request-rate 0.1
    persona serve --model work/bundle --port 8000 &
    python examples/simulate_devices.py --work work --bundle film-bundle --service http://127.0.0.1:8000

Each device is one day of one user of the log: it starts with the user's history before that day, and the day's events come at
their times of day, all devices' days laid over each other. At each event the device has ranked the next item by itself; then it
decides, again by itself, whether to ask the cloud for an edit. A share of devices loses the network for an hour at a time: they
go on with what they have. A device whose prototype bank is older than the service's fetches the new one first. At most eight devices talk to the service at a time, and time is not waited for.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from persona.device import CloudClient, CloudEdit, CloudError, Device, DeviceBundle
from persona.errors import DataError, PersonaError
from recsys.data.sequences import SequenceData
from recsys.device.recommender import Catalogue, DeviceRecommender

DAY, HOUR = 86_400, 3_600
TOP = 10
# The device holds another version than the service.
CONFLICT = 409


@dataclass(frozen=True)
class UserDay:
    """One day of one user: item ids before it, and (second of the day, item id) in it."""

    past: list[str]
    events: list[tuple[int, str]]


@dataclass
class Report:
    """What happened, summed over devices."""

    events: int = 0
    hits: int = 0
    host_hits: int = 0
    wanted: int = 0
    received: int = 0
    banks: int = 0
    offline: int = 0
    turned_away: int = 0
    refused: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    retried: int = 0
    levels: Counter[str] = field(default_factory=Counter)
    cloud_ms: list[float] = field(default_factory=list)
    device_ms: list[float] = field(default_factory=list)

    def add(self, other: Report) -> None:
        """Take in what happened elsewhere."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def as_dict(self, devices: int, seconds: float) -> dict[str, Any]:
        """For people and machines."""
        events, received = max(self.events, 1), max(self.received, 1)
        return {
            "devices": devices,
            "events": self.events,
            "seconds": round(seconds, 1),
            "requests_an_event": round(self.wanted / events, 4),
            "edits_received": self.received,
            "banks_fetched": self.banks,
            "offline_when_wanted": self.offline,
            "turned_away_in_the_end": self.turned_away,
            "sent_again": self.retried,
            "refused_by_device": self.refused,
            "bytes_up_an_edit": round(self.sent_bytes / received, 1),
            "bytes_down_an_edit": round(self.received_bytes / received, 1),
            "answers_by_level": dict(self.levels),
            "hit_rate_10": round(self.hits / events, 4),
            "hit_rate_10_of_the_host": round(self.host_hits / events, 4),
            "cloud_ms": _percentiles(self.cloud_ms),
            "device_ms": _percentiles(self.device_ms),
        }


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    found = np.percentile(values, [50, 95, 99])
    return {name: round(float(value), 3) for name, value in zip(("p50", "p95", "p99"), found, strict=True)}


def user_days(data: SequenceData, count: int, *, least: int = 2) -> list[UserDay]:
    """The latest ``count`` days of users with a past and at least ``least`` events.

    Raises:
        DataError: the log has no times, or too few such days.
    """
    if data.ordered_only:
        raise DataError("this log has an order but no times, so it has no days: give a log with times")
    ids, found = data.item_ids.to_list(), []
    for start, stop in zip(data.offsets[:-1], data.offsets[1:], strict=True):
        days = data.times[start:stop] // DAY
        for day in np.unique(days):
            first, last = start + np.searchsorted(days, day), start + np.searchsorted(days, day, side="right")
            if first > start and last - first >= least:
                found.append((int(day), int(start), int(first), int(last)))
    if len(found) < count:
        raise DataError(f"the log has {len(found)} days of users with a past, but {count} devices were asked for")
    latest = sorted(found, reverse=True)[:count]
    return [
        UserDay(
            [ids[i - 1] for i in data.items[start:first]],
            [(int(data.times[p] % DAY), ids[data.items[p] - 1]) for p in range(first, last)],
        )
        for _, start, first, last in latest
    ]


def live(
    days: Sequence[UserDay], bundle: DeviceBundle, states: Path, service: str, offline: float, seed: int
) -> Report:
    """Some devices' day, event by event in the order of time, over one connection."""
    report, catalogue = Report(), Catalogue.of(bundle)
    rng = np.random.default_rng(seed)
    lost = rng.random((len(days), DAY // HOUR)) < offline
    devices = [DeviceRecommender(Device(bundle, states / f"{seed}-{i}"), catalogue) for i in range(len(days))]
    histories = [list(day.past) for day in days]
    queue = sorted((second, i, item) for i, day in enumerate(days) for second, item in day.events)
    with CloudClient(service) as cloud:
        for second, i, item in queue:
            _event(report, devices[i], histories[i], item, cloud, lost=bool(lost[i, second // HOUR]))
        report.sent_bytes, report.received_bytes, report.retried = cloud.sent, cloud.received, cloud.retried
    return report


def _event(
    report: Report, device: DeviceRecommender, history: list[str], item: str, cloud: CloudClient, *, lost: bool
) -> None:
    """The device ranks, the user acts, the device asks if it wants to and can."""
    start = time.perf_counter()
    answer = device.recommend(history, TOP)
    report.device_ms.append(1e3 * (time.perf_counter() - start))
    report.events += 1
    report.levels[answer.level] += 1
    report.hits += item in {found.item_id for found in answer.items}
    report.host_hits += item in {found.item_id for found in device.recommend(history, TOP, plain=True).items}
    history.append(item)
    if device.device.bundle.policy is not None and not device.wants_edit(history):
        return
    report.wanted += 1
    if lost:
        report.offline += 1
        return
    _ask(report, device, history, cloud)


def _ask(report: Report, device: DeviceRecommender, history: list[str], cloud: CloudClient) -> None:
    start = time.perf_counter()
    try:
        try:
            edit = _edit(device, history, cloud)
        except CloudError as outdated:
            if outdated.status != CONFLICT:
                raise
            device.device.receive_bank(cloud.bank())
            report.banks += 1
            edit = _edit(device, history, cloud)
        report.cloud_ms.append(1e3 * (time.perf_counter() - start))
        device.receive(edit.message, edit.level, history)
        report.received += 1
    except CloudError:
        report.turned_away += 1
    except PersonaError:
        report.refused += 1


def _edit(device: DeviceRecommender, history: list[str], cloud: CloudClient) -> CloudEdit:
    """An edit for the device's own versions."""
    bundle, bank = device.device.bundle, device.device.bank
    return cloud.edit(
        {"history": history[-device.length :]},
        "full" if bank is None else "basis",
        host=bundle.host,
        bank=None if bank is None else bank.version,
    )


def main() -> None:
    """Simulate and print the report as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("work"), help="workspace with prepared events")
    parser.add_argument("--bundle", type=Path, required=True, help="folder of persona export")
    parser.add_argument("--service", required=True, help="address of persona serve")
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--offline", type=float, default=0.1, help="share of device hours without a network")
    arguments = parser.parse_args()
    days = user_days(SequenceData.load(arguments.work / "prepared"), arguments.devices)
    bundle = DeviceBundle.load(arguments.bundle)
    report, start = Report(), time.perf_counter()
    with tempfile.TemporaryDirectory() as states, ThreadPoolExecutor(arguments.connections) as pool:
        parts = [
            pool.submit(
                live,
                days[k :: arguments.connections],
                bundle,
                Path(states),
                arguments.service,
                arguments.offline,
                k,
            )
            for k in range(arguments.connections)
        ]
        for part in parts:
            report.add(part.result())
    print(json.dumps(report.as_dict(len(days), time.perf_counter() - start), indent=2))


if __name__ == "__main__":
    main()
