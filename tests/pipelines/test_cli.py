import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from importlib.metadata import version

import pytest

from pipelines import tracking
from pipelines.cli import main
from pipelines.doctor import free_port


def test_the_command_starts_without_heavy_packages():
    code = (
        "import sys\nfrom pipelines.cli import main\ncode = main(['--help'])\n"
        "heavy = {'torch', 'torchrec', 'torchvision', 'mlflow', 'polars', 'pandas', 'matplotlib', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported {sorted(heavy)}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "persona recsys run --data movielens-small" in done.stdout


def test_the_environment_is_set_before_any_command_runs():
    names = ["OMP_WAIT_POLICY", "MLFLOW_DISABLE_TELEMETRY"]
    clean = {name: value for name, value in os.environ.items() if name not in names}
    code = f"import os\nfrom pipelines.cli import main\nmain(['--version'])\nprint([os.environ[n] for n in {names}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean, check=True)
    assert "['PASSIVE', 'true']" in done.stdout


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"persona {version('persona')}\n"


@pytest.mark.parametrize("command", [["--help"], ["doctor", "--help"], ["ui", "--help"], ["recsys", "--help"]])
def test_every_command_has_help(command, capsys):
    assert main(command) == 0
    assert "Usage: persona" in capsys.readouterr().out


def test_no_command_shows_the_help_and_nothing_else(capsys):
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert "Usage: persona" in out + err
    assert "Error" not in err


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [(["docter"], "Did you mean 'doctor'?"), (["recsis"], "'recsys'"), (["ui", "--prot"], "--port")],
)
def test_an_unknown_name_is_answered_with_the_nearest(arguments, hint, capsys):
    assert main(arguments) == 2
    assert hint in capsys.readouterr().err


def test_the_ui_says_which_port_is_free_when_one_is_taken(workplace, capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["ui", "--port", str(port)]) == 2
    err = capsys.readouterr().err
    assert f"port {port} is taken" in err
    assert re.search(r"persona ui --port \d+", err)


def test_the_ui_of_a_server_is_the_servers(workplace, capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert main(["ui"]) == 2
    assert "open http://127.0.0.1:1 in a browser" in capsys.readouterr().err


def test_the_ui_refuses_a_folder_of_files(workplace, capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "./mlruns")
    assert main(["ui"]) == 2
    assert "unset MLFLOW_TRACKING_URI" in capsys.readouterr().err


@pytest.mark.slow
def test_the_ui_serves_the_runs_and_files_of_the_default_store(workplace):
    tracking.connect("films")
    with tracking.run("pretrain") as run:
        tracking.log_json({"uauc": 0.9}, "comparison.json")
    port = free_port(20000 + os.getpid() % 20000)
    server = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", "ui", "--port", str(port)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert f"127.0.0.1:{port}" in server.stdout.readline()
        address = f"http://127.0.0.1:{port}"
        page = _get(f"{address}/")
        assert b"<title>MLflow</title>" in page
        experiment = json.loads(_get(f"{address}/api/2.0/mlflow/experiments/get-by-name?experiment_name=films"))
        assert experiment["experiment"]["artifact_location"] == (workplace / "mlruns" / "artifacts" / "films").as_uri()
        stored = _get(f"{address}/get-artifact?path=comparison.json&run_uuid={run.info.run_id}")
        assert json.loads(stored) == {"uauc": 0.9}
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(timeout=30)
        server.stdout.close()


def _get(url, patience=60):
    deadline = time.monotonic() + patience
    while True:
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return answer.read()
        except urllib.error.HTTPError:
            raise
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)
