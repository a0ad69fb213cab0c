import http.server
import json
import re
import socket
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from pipelines import doctor
from pipelines.cli import main
from pipelines.console import Output
from pipelines.doctor import installation, surroundings
from pipelines.doctor.finding import Finding

GOOD = {
    "torch": "2.14.1+cu130",
    "torchvision": "0.29.1+cu130",
    "torchrec": "1.9.2",
    "fbgemm-gpu-cpu": "1.9.0",
    "torchmetrics": "1.0.3",
    "mlflow": "3.17.2",
    "mlflow-skinny": "3.17.2",
    "mlflow-tracing": "3.17.2",
}
GONE = None


def versions(changes):
    return {name: version for name, version in {**GOOD, **changes}.items() if version is not GONE}


@pytest.mark.parametrize("gpu", [False, True])
def test_the_pinned_versions_are_in_order(gpu):
    changes = {"fbgemm-gpu": "1.9.0", "fbgemm-gpu-cpu": GONE} if gpu else {}
    assert [f.status for f in installation.check_packages(versions(changes), gpu)] == ["ok"] * 6


def test_the_release_before_is_in_order():
    changes = {"torch": "2.13.0", "torchvision": "0.28.0", "torchrec": "1.8.0", "fbgemm-gpu-cpu": "1.8.0"}
    assert {f.status for f in installation.check_packages(versions(changes), gpu=False)} == {"ok"}


BROKEN = [
    ({"torch": "2.15.0+cu132"}, "fail", "no fbgemm-gpu-cpu is known to load with torch 2.15", "torch==2.14.1"),
    ({"torch": "2.13.0+cu130"}, "fail", "fbgemm-gpu-cpu 1.9.0 does not load with torch 2.13", "torch==2.14.1"),
    ({"fbgemm-gpu-cpu": "1.8.0"}, "fail", "takes 1.9", "--no-deps fbgemm-gpu-cpu==1.9.0"),
    ({"fbgemm-gpu-cpu": GONE}, "fail", "not installed", "--no-deps fbgemm-gpu-cpu==1.9.0"),
    ({"fbgemm-gpu-cpu": GONE, "fbgemm-gpu": "1.9.0"}, "fail", "needs an NVIDIA driver", "fbgemm-gpu-cpu==1.9.0"),
    ({"fbgemm-gpu": "1.9.0"}, "fail", "overwrite each other", r"uninstall .*fbgemm-gpu fbgemm-gpu-cpu && .* install"),
    ({"torchrec": "1.8.0"}, "fail", "torchrec 1.8.0 does not load", "torchrec==1.9.2"),
    ({"torchrec": GONE}, "fail", "torchrec not installed", "torchrec==1.9.2"),
    ({"torchvision": "0.28.0+cu130"}, "fail", "torchvision 0.28.0", "torchvision==0.29.1"),
    ({"torchvision": "0.29.2+cu132"}, "warn", "torch is built for cu130, torchvision for cu132", "torchvision==0.29.1"),
    ({"torchmetrics": "1.5.0"}, "fail", "torchmetrics 1.0.3 exactly, 1.5.0", "torchmetrics==1.0.3"),
    ({"torchmetrics": GONE}, "fail", "none is installed", "torchmetrics==1.0.3"),
    ({"mlflow": "3.18.0"}, "fail", "mlflow 3.18.0, mlflow-skinny 3.17.2", "mlflow-skinny==3.17.2"),
    (
        {"triton": "3.8.0", "nvidia-nvtx": "13.0"},
        "warn",
        "but not triton, nvidia-nvtx",
        "uninstall .*triton nvidia-nvtx",
    ),
]


@pytest.mark.parametrize(("changes", "status", "detail", "mend"), BROKEN)
def test_packages_that_do_not_belong_together(changes, status, detail, mend):
    bad = [f for f in installation.check_packages(versions(changes), gpu=False) if f.status != "ok"]
    assert bad[0].status == status
    assert detail in bad[0].detail
    assert re.search(mend, bad[0].mend)
    assert len(bad) == 1 or "torch" in changes


@pytest.mark.parametrize(
    ("changes", "detail"),
    [({}, "for the CPU"), ({"torch": "2.14.1+cpu", "torchvision": "0.29.1+cpu", "fbgemm-gpu": "1.9.0"}, "for the CPU")],
)
def test_packages_for_the_cpu_beside_a_gpu(changes, detail):
    found = installation.check_packages(versions(changes), gpu=True)[-1]
    assert (found.status, found.mend) == ("warn", ".uv/bin/uv sync --no-group cpu --group gpu")
    assert detail in found.detail


def test_another_cuda_build_fails_on_a_gpu():
    found = installation.check_packages(versions({"torchvision": "0.29.2+cu132"}), gpu=True)[2]
    assert (found.name, found.status) == ("torchvision", "fail")


def test_another_python():
    assert installation.check_python().status == "ok"
    found = installation.check_python((3, 12))
    assert found.status == "fail"
    assert "3.12" in found.detail


def test_the_lines_that_mend_give_the_locked_versions():
    lock = (Path(__file__).parents[2] / "requirements.lock").read_text()
    for name, version in installation.PINS.items():
        if name != "fbgemm-gpu":  # the lock is for the CPU
            assert f"\n{name}=={version} " in lock


def test_the_installed_packages_are_in_order():
    found = installation.installed()
    assert found.keys() >= {"torch", "torchvision", "torchrec", "torchmetrics", "mlflow"}
    statuses = [f.status for f in installation.check_packages(found, installation.has_gpu())]
    assert "fail" not in statuses


# The last lines of imports that failed, of combinations of wheels that were really installed.
FBGEMM = "OSError: Could not load this library: /site-packages/fbgemm_gpu/fbgemm_gpu_"
ERRORS = [
    (
        f"OSError: /x/fbgemm_gpu_tbe.so: undefined symbol: _ZN5torch8autograd13\n\n{FBGEMM}tbe_index_select.so",
        "fbgemm is built for another torch",
        "fbgemm-gpu-cpu==1.9.0",
    ),
    (
        f"OSError: libnvidia-ml.so.1: cannot open shared object file: No such file or directory\n\n{FBGEMM}py.so",
        "no NVIDIA driver",
        "uninstall .*fbgemm-gpu && .*fbgemm-gpu-cpu==1.9.0",
    ),
    ("RuntimeError: operator torchvision::nms does not exist", "torchvision is built", "torchvision==0.29.1"),
    (
        "ImportError: libcudart.so.13: cannot open shared object file: No such file or directory",
        "libcudart.so.13, which torch needs even without a GPU, is missing",
        "make clean setup",
    ),
    ("ImportError: libcudnn.so.9: cannot open shared object file: No such file", "libcudnn.so.9", "make clean setup"),
    ("ModuleNotFoundError: No module named 'tensordict'", "package tensordict is missing", "make clean setup"),
    ("Bus error", "do not load (Bus error)", "make clean setup"),
    ("", "without a word", "make clean setup"),
]


@pytest.mark.parametrize(("stderr", "detail", "mend"), ERRORS)
def test_failed_imports_are_recognised(stderr, detail, mend):
    found = installation.recognise(f"Traceback (most recent call last):\n{stderr}\n" if stderr else "")
    assert found.status == "fail"
    assert detail in found.detail
    assert re.search(mend, found.mend)
    assert stderr.rpartition("\n")[2] in found.detail


@pytest.mark.slow
def test_imports_are_really_tried(tmp_path, monkeypatch):
    assert installation.check_imports().status == "ok"
    (tmp_path / "fbgemm_gpu.py").write_text(f"raise OSError({FBGEMM.partition(': ')[2] + 'py.so'!r})")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = installation.check_imports()
    assert found.status == "fail"
    assert "fbgemm is built for another torch" in found.detail


def test_a_folder_of_files_as_store(workplace, monkeypatch):
    assert surroundings.check_uri().status == "ok"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "./mlruns")
    found = surroundings.check_uri()
    assert (found.status, found.mend) == ("fail", "unset MLFLOW_TRACKING_URI")
    assert surroundings.check_database().status == "ok"


@pytest.fixture
def serve():
    """Starts a small web server that answers every request with a status, and gives its port."""
    servers = []

    def start(status):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status if self.path == "/health" else 404)
                self.end_headers()

            def log_message(self, *arguments):
                pass

        server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return server.server_address[1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(("answer", "status"), [(200, "ok"), (503, "warn")])
def test_a_tracking_server_is_asked(answer, status, serve, workplace, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{serve(answer)}/")
    assert surroundings.check_uri().status == status
    assert surroundings.check_folder().status == "ok"


def test_a_tracking_server_that_does_not_answer(workplace, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{doctor.free_port(30000)}")
    assert surroundings.check_uri().status == "fail"


def test_a_database_in_order_and_one_to_be_made(workplace):
    assert surroundings.check_database() == Finding("database", "ok", f"{workplace}/mlruns/mlflow.db is in order")
    (workplace / "mlruns" / "mlflow.db").unlink()
    assert "will be made" in surroundings.check_database().detail
    assert not (workplace / "mlruns" / "mlflow.db").exists()


def test_a_locked_database_names_the_process_to_end(workplace):
    path = workplace / "mlruns" / "mlflow.db"
    code = "import sqlite3, sys\nc = sqlite3.connect(sys.argv[1], isolation_level=None)\nc.execute('BEGIN IMMEDIATE')\n"
    holder = subprocess.Popen(
        [sys.executable, "-c", f"{code}print(flush=True)\nsys.stdin.read()", path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    holder.stdout.readline()
    found = surroundings.check_database()
    holder.communicate()
    assert (found.status, found.mend) == ("fail", f"kill {holder.pid}")
    assert "locked" in found.detail
    assert surroundings.check_database().status == "ok"


def test_a_text_file_as_database(workplace):
    (workplace / "mlruns" / "mlflow.db").write_text("run,loss\n" * 100)
    found = surroundings.check_database()
    assert found.status == "fail"
    assert found.mend.startswith("mv ")


def test_a_database_of_an_older_mlflow(workplace):
    with closing(sqlite3.connect("mlruns/mlflow.db")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
        connection.commit()
    found = surroundings.check_database()
    assert found.status == "fail"
    assert found.mend.endswith(f"-m mlflow db upgrade sqlite:///{workplace}/mlruns/mlflow.db")


def test_a_folder_that_cannot_be_written(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////proc/mlruns/mlflow.db")
    found = surroundings.check_folder()
    assert found.status == "fail"
    assert found.mend.startswith("export MLFLOW_TRACKING_URI=sqlite:///")


def test_a_disk_with_little_space(workplace):
    assert surroundings.check_folder(least=0, good=0).status == "ok"
    assert surroundings.check_folder(least=0, good=10**18).status == "warn"
    assert surroundings.check_folder(least=10**18, good=10**18).status == "fail"


def test_a_taken_port_and_the_next_free_one():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        found = surroundings.check_port(port)
    assert found.status == "warn"
    assert re.fullmatch(r"persona ui --port \d+", found.mend)
    assert found.mend != f"persona ui --port {port}"
    assert surroundings.check_port(port).status == "ok"


def test_a_port_on_which_mlflow_answers(serve):
    found = surroundings.check_port(serve(200))
    assert (found.status, found.mend) == ("ok", "")
    assert "MLflow" in found.detail


@pytest.mark.parametrize(
    ("environment", "mend"),
    [
        ({"OMP_WAIT_POLICY": "PASSIVE"}, ""),
        ({"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "1"}, ""),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "export OMP_WAIT_POLICY=PASSIVE"),
        ({}, "export OMP_WAIT_POLICY=PASSIVE"),
        ({"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "4096"}, "export OMP_NUM_THREADS=1"),
        ({"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "two"}, "export OMP_NUM_THREADS=1"),
    ],
)
def test_threads(environment, mend):
    found = surroundings.check_threads(environment)
    assert found.mend == mend
    assert (found.status == "ok") == (mend == "")


def test_what_is_shown_and_what_counts_as_healthy(capsys):
    findings = [Finding("port", "warn", "taken", "persona ui --port 5001"), Finding("python", "ok", "3.11")]
    doctor.show(findings, Output(as_json=False))
    out = capsys.readouterr().out
    assert "mend port:  persona ui --port 5001" in out
    assert "nothing failed" in out
    assert doctor.healthy(findings)
    assert not doctor.healthy([*findings, Finding("database", "fail", "locked", "kill 7")])


@pytest.mark.slow
def test_the_command_ends_with_one_when_something_failed(workplace, monkeypatch, capsys):
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    assert {f["name"] for f in report["findings"]} >= {"python", "imports", "database", "port", "threads"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "./mlruns")
    assert main(["doctor", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert [f["mend"] for f in report["findings"] if f["status"] == "fail"] == ["unset MLFLOW_TRACKING_URI"]
