"""The container's files, as far as they can be checked without an engine."""

import re
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[3]
NEEDED = ("numpy", "onnxruntime", "safetensors", "polars", "fastapi", "uvicorn", "uvloop", "httptools", "pydantic")


def instructions():
    text = re.sub(r"^#.*\n", "", (ROOT / "Containerfile").read_text(), flags=re.M).replace("\\\n", " ")
    return [line.split(None, 1) for line in text.splitlines() if line.strip()]


def test_the_lock_is_cut_to_what_an_answer_needs():
    program = re.search(r"awk '(.+?)'", (ROOT / "Containerfile").read_text()).group(1)
    cut = subprocess.run(
        ["awk", program, str(ROOT / "requirements.lock")], capture_output=True, text=True, check=True
    ).stdout
    names = re.findall(r"^([a-z0-9._-]+)==", cut, flags=re.M)
    assert {*NEEDED, "mlflow", "typer", "prometheus-client", "hatchling"} <= set(names)
    assert not [name for name in names if name.startswith(("torch", "nvidia", "fbgemm", "cuda"))]
    for block in re.split(r"^(?=[a-z])", cut, flags=re.M)[1:]:
        assert "--hash=sha256:" in block, block.splitlines()[0]


def test_the_image_runs_as_nobody_special_and_ends_on_a_signal():
    found = instructions()
    kinds = [kind for kind, _ in found]
    assert kinds[0] == "FROM"
    assert set(kinds) <= {
        "FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "EXPOSE", "HEALTHCHECK", "STOPSIGNAL", "ENTRYPOINT", "CMD",
    }  # fmt: skip
    assert kinds.index("USER") < kinds.index("ENTRYPOINT")
    assert all(":" in rest.split()[0] for kind, rest in found if kind == "FROM"), "images are named with a version"
    copied = [rest.split()[:-1] for kind, rest in found if kind == "COPY" and "--from" not in rest]
    assert all((ROOT / name).exists() for names in copied for name in names)
    entry = next(rest for kind, rest in found if kind == "ENTRYPOINT")
    assert entry.startswith('["persona", "serve"'), "in the form that passes signals on"


def test_the_composition_starts_the_registry_first():
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    assert set(services) == {"mlflow", "persona"}
    persona = services["persona"]
    assert persona["depends_on"]["mlflow"]["condition"] == "service_healthy"
    assert "healthcheck" in services["mlflow"]
    assert persona["environment"]["MLFLOW_TRACKING_URI"].startswith("http://mlflow:")
    for service in services.values():
        assert (ROOT / service["build"]["dockerfile"]).is_file()
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), "open to this machine alone"


def test_options_of_the_files_are_options_of_the_command():
    text = (ROOT / "Containerfile").read_text() + (ROOT / "compose.yaml").read_text()
    source = (ROOT / "pipelines" / "commands" / "serve.py").read_text()
    for option in ("model", "drain", "host", "port"):
        assert f"--{option}" in text
        assert re.search(rf"^    {option}: Annotated", source, flags=re.M)
