"""A service over the toy bundle, in this process and as a process of its own."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest
import uvicorn
from starlette.testclient import TestClient

from pipelines.serving.app import Service
from pipelines.serving.config import ServingConfig
from pipelines.serving.sources import FolderSource
from pipelines.serving.tasks import task_of
from tests.pipelines.serving.toy import write_bundle

PATIENCE = 120


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    return write_bundle(tmp_path_factory.mktemp("bundles") / "bundle")


@pytest.fixture(scope="session")
def classifier_bundle(tmp_path_factory):
    from tests.pipelines.serving.toy_vision import write_classifier  # torch is wanted by some tests only

    return write_classifier(tmp_path_factory.mktemp("classifiers") / "bundle")


@contextmanager
def client_of(folder, **settings):
    """A client of a service that has loaded the bundle in ``folder``."""
    source = FolderSource(folder)
    service = Service(task_of(source), source, ServingConfig(**settings))
    with TestClient(service.app, raise_server_exceptions=False) as client:
        client.service = service
        yield client


@contextmanager
def listening(folder, **settings):
    """The address of a service in a thread of this process, which has loaded torch already where that is needed."""
    source = FolderSource(folder)
    service = Service(task_of(source), source, ServingConfig(**settings))
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(service.app, host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + PATIENCE
    while not server.started:
        assert thread.is_alive(), "the service did not start"
        assert time.monotonic() < end, f"the service did not start within {PATIENCE} s"
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(PATIENCE)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def client(bundle):
    with client_of(bundle) as client:
        yield client


class Process:
    """`persona serve` as its users run it."""

    def __init__(self, folder, log, *options):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        command = [sys.executable, "-m", "pipelines.cli", "serve", "--model", str(folder), "--port", str(self.port)]
        with log.open("w") as out:
            self.process = subprocess.Popen([*command, *options], stderr=out, stdout=out, env=os.environ.copy())

    def wait(self):
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise AssertionError(self.log.read_text())
            try:
                self.get("/readyz")
                return self
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.2)
        raise AssertionError(f"not ready after {PATIENCE} s: {self.log.read_text()}")

    def get(self, path):
        with urllib.request.urlopen(self.url + path, timeout=PATIENCE) as response:
            return response.read()

    def post(self, path, body):
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            return json.loads(response.read())

    def stop(self, signal_=signal.SIGTERM):
        self.process.send_signal(signal_)
        return self.process.wait(PATIENCE)


@pytest.fixture(scope="module")
def process(bundle, tmp_path_factory):
    running = Process(bundle, tmp_path_factory.mktemp("serve") / "log", "--poll", "0.2")
    try:
        yield running.wait()
    finally:
        if running.process.poll() is None:
            running.process.kill()
            running.process.wait(PATIENCE)
