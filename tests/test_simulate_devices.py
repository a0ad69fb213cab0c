"""The example: days of real users become devices that live through them against a service, online and not."""

import importlib.util
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from persona.device import DeviceBundle
from persona.device.bank import pack_bank, read_bank
from persona.errors import DataError
from persona.prototypes import Server, fit_bank, save_bank
from recsys.data.sequences import SequenceData
from recsys.device.export import export_recommender, fit_request_policy
from recsys.serving.release import Release
from tests.recsys.device.test_export import recommender
from tests.recsys.toy import walks

PATH = Path(__file__).parents[1] / "examples" / "simulate_devices.py"
DAY = 86_400


@pytest.fixture(scope="module")
def simulate():
    spec = importlib.util.spec_from_file_location("simulate_devices", PATH)
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def _days():
    """Twenty users with twelve events over four days."""
    data = walks(users=20, events=12)
    times = np.tile(np.arange(12) // 3 * DAY + np.arange(12) % 3 * 600, 20).astype(np.int64)
    ids = pl.Series([f"i{n}" for n in range(1, data.n_items + 1)])  # those of the recommender
    return SequenceData(**{**vars(data), "times": times, "basket_start": np.arange(data.n_events), "item_ids": ids})


def test_a_day_of_a_user_is_a_device(simulate):
    data = _days()
    days = simulate.user_days(data, 30)
    assert len(days) == 30
    last = data.n_users * 1
    assert sum(len(day.past) == 9 for day in days) == last  # the latest day of everybody comes first
    assert all([second for second, _ in day.events] == [0, 600, 1200] for day in days)
    ids = data.item_ids.to_list()
    whole = [ids[i - 1] for i in data.items[data.offsets[19] : data.offsets[20]]]
    assert days[0].past + [item for _, item in days[0].events] == whole
    with pytest.raises(DataError, match="60 days of users with a past"):
        simulate.user_days(data, 61)


class _Cloud:
    """The edits and the bank of a recommender over HTTP, every fifth request for an edit turned away for good."""

    def __init__(self, made, folder):
        server = Server(made.model.editor, made.bank)
        save_bank(folder, made.bank)
        asked, told_of_bank = [], pack_bank(read_bank(folder))

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                asked.append(body)
                if len(asked) % 5 == 0:
                    return self._send(503, {"retry-after": "900"}, b'{"error": "full", "kind": "over_capacity"}')
                if body["bank"] != made.bank.version:
                    return self._send(409, {}, b'{"error": "another bank", "kind": "other_version"}')
                with torch.no_grad():
                    context = made.context_of([body["history"]])
                    codes = made.model.editor.codes(made.model.host.context_features(context), context.lengths)
                told = {"x-persona-level": body["level"], "x-persona-host": body["host"]}
                message = server.messages(codes, body["level"])[0]
                return self._send(200, told | {"content-type": "application/octet-stream"}, message)

            def do_GET(self):
                return self._send(200, {"content-type": "application/octet-stream"}, told_of_bank)

            def _send(self, status, headers, data):
                self.send_response(status)
                for name, value in {**headers, "content-length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args):
                pass

        self.asked = asked
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"


def test_devices_live_through_their_day(simulate, tmp_path):
    made, data = recommender("gru4rec"), _days()
    export_recommender(made, tmp_path / "bundle", policy=fit_request_policy(made, data, 0.5))
    bundle, cloud = DeviceBundle.load(tmp_path / "bundle"), _Cloud(made, tmp_path / "bank")
    days = simulate.user_days(data, 20)
    report = simulate.live(days, bundle, tmp_path / "states", cloud.url, 0.0, 0)
    found = report.as_dict(len(days), 1.0)
    assert found["events"] == 60 == sum(found["answers_by_level"].values())
    assert report.wanted == report.received + report.turned_away == len(cloud.asked)
    assert report.turned_away == len(cloud.asked) // 5
    assert 0 < report.wanted < 60
    assert found["answers_by_level"]["basis"] > 0
    assert report.refused == report.offline == report.banks == 0
    assert found["bytes_down_an_edit"] <= 64 + 60
    away = simulate.live(days, bundle, tmp_path / "away", cloud.url, 1.0, 0)
    assert (away.received, away.offline) == (0, away.wanted)
    assert away.levels == {"host": 60}
    assert away.hits == away.host_hits
    cloud.server.shutdown()
    cloud.server.server_close()


def test_devices_take_up_a_newer_bank(simulate, tmp_path):
    made, data = recommender("gru4rec"), _days()
    export_recommender(made, tmp_path / "bundle", policy=fit_request_policy(made, data, 0.5))
    codes = made.codes(made.context_of([[f"i{n}"] for n in range(1, 21)])).detach()
    made = Release(made.model, made.item_ids, made.titles, bank=fit_bank(made.model.editor, codes, 3).bank)
    bundle, cloud = DeviceBundle.load(tmp_path / "bundle"), _Cloud(made, tmp_path / "bank")
    assert bundle.bank.version != made.bank.version
    days = simulate.user_days(data, 20)
    report = simulate.live(days, bundle, tmp_path / "states", cloud.url, 0.0, 0)
    assert 0 < report.banks <= 20, "each device fetches it once"
    assert report.refused == 0
    assert report.received > 0
    assert report.levels["basis"] > 0
    cloud.server.shutdown()
    cloud.server.server_close()
