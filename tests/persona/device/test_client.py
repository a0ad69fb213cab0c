"""The client asks again when it should, gives up when it must, and says why."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from persona.device import CloudClient, CloudError
from persona.errors import ConfigError

BINARY = {"content-type": "application/octet-stream"}
TOLD = BINARY | {"x-persona-level": "basis", "x-persona-prototype": "3", "x-persona-host": "h", "x-persona-bank": "b"}


class Service:
    """A real server that answers from a script: (status, headers, body), or ``None`` to hang up."""

    def __init__(self):
        self.script, self.seen = [], []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                outer.seen.append((self.path, dict(self.headers), json.loads(body) if body else None))
                step = outer.script.pop(0)
                if step is None:
                    self.close_connection = True
                    return
                status, headers, data = step
                self.send_response(status)
                for name, value in {**headers, "content-length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def service():
    made = Service()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def waited():
    return []


@pytest.fixture
def client(service, waited):
    with CloudClient(service.url, "secret-key-of-16-signs", timeout=10, retries=2, sleep=waited.append) as made:
        yield made


def _problem(status, kind, **headers):
    return status, headers, json.dumps({"error": f"because of {kind}", "kind": kind}).encode()


def test_an_edit_comes_as_bytes_with_its_versions(service, client):
    service.script = [(200, TOLD, b"message")]
    edit = client.edit({"history": ["1"]}, "basis", host="h", bank="b")
    assert (edit.level, edit.message, edit.prototype, edit.host, edit.bank) == ("basis", b"message", 3, "h", "b")
    path, headers, body = service.seen[0]
    assert path == "/v1/edits"
    assert body == {"history": ["1"], "level": "basis", "host": "h", "bank": "b"}
    assert headers["X-API-Key"] == "secret-key-of-16-signs"
    assert client.received == len(b"message")
    assert client.sent == len(json.dumps(body))


def test_an_edit_without_a_bank_names_none(service, client):
    told = {**TOLD, "x-persona-level": "full", "x-persona-prototype": "", "x-persona-bank": ""}
    service.script = [(200, told, b"m")]
    edit = client.edit({"history": []}, "full")
    assert (edit.prototype, edit.bank) == (None, "")
    assert service.seen[0][2] == {"history": [], "level": "full"}


def test_being_turned_away_is_waited_for(service, client, waited):
    service.script = [
        _problem(429, "over_capacity", **{"retry-after": "2"}),
        _problem(503, "deadline"),
        (200, TOLD, b"m"),
    ]
    assert client.edit({"history": []}).message == b"m"
    assert waited == [2.0, 1.0]
    assert client.retried == 2


def test_a_wait_that_is_too_long_ends_it(service, client, waited):
    service.script = [_problem(503, "unavailable", **{"retry-after": "3600"})]
    with pytest.raises(CloudError, match="because of unavailable") as refused:
        client.edit({"history": []})
    assert (refused.value.status, waited) == (503, [])


def test_attempts_end(service, client, waited):
    service.script = [_problem(429, "over_capacity", **{"retry-after": "1"})] * 3
    with pytest.raises(CloudError) as refused:
        client.edit({"history": []})
    assert (refused.value.status, refused.value.kind, len(waited)) == (429, "over_capacity", 2)
    assert not service.script


def test_a_refusal_is_not_repeated(service, client, waited):
    service.script = [_problem(409, "other_version")]
    with pytest.raises(CloudError, match="because of other_version") as refused:
        client.edit({"history": []})
    assert (refused.value.status, waited, len(service.seen)) == (409, [], 1)
    service.script = [(500, {}, b"<html>")]
    with pytest.raises(CloudError, match="status 500"):
        client.edit({"history": []})


def test_a_connection_that_breaks_is_opened_again(service, client, waited):
    service.script = [None, (200, TOLD, b"m"), (200, TOLD, b"n")]
    assert client.edit({"history": []}).message == b"m"
    assert client.edit({"history": []}).message == b"n"
    assert len(waited) == 1


def test_without_a_service_the_device_is_offline():
    waited = []
    with CloudClient("http://127.0.0.1:9", timeout=1, retries=2, sleep=waited.append) as client:
        with pytest.raises(CloudError, match="go on offline") as refused:
            client.edit({"history": []})
        assert not client.ready()
    assert (refused.value.status, refused.value.kind) == (0, "offline")
    assert 0 < waited[0] < waited[1] < 1


def test_other_services_are_told_apart(service, client):
    service.script = [(200, {"content-type": "text/html"}, b"hello")] * 2
    with pytest.raises(CloudError, match="no service of this release"):
        client.edit({"history": []})
    with pytest.raises(CloudError, match="answers no JSON"):
        client.ask("/v1/prototypes")


def test_json_is_asked_for_with_and_without_a_body(service, client):
    service.script = [(200, {}, b'{"a": 1}'), (200, {}, b"[2]"), (200, {}, b""), (503, {}, b"")]
    assert client.ask("/v1/prototypes") == {"a": 1}
    assert client.ask("/v1/assignments", {"histories": []}) == [2]
    assert client.ready()
    assert not client.ready()


def test_an_address_has_to_be_one():
    for url in ("127.0.0.1:80", "ftp://x", "http://", ""):
        with pytest.raises(ConfigError, match="give one such as"):
            CloudClient(url)


def test_the_bank_comes_as_bytes(service, client):
    service.script = [(200, BINARY, b"bank"), (200, {"content-type": "text/html"}, b"<html>"), _problem(404, "no_bank")]
    assert client.bank() == b"bank"
    path, headers, _ = service.seen[0]
    assert (path, headers["Accept"]) == ("/v1/prototypes", BINARY["content-type"])
    for kind in ("foreign", "no_bank"):
        with pytest.raises(CloudError) as refused:
            client.bank()
        assert refused.value.kind == kind
