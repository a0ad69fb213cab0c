import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "requirements.lock").read_text()


def test_the_lock_names_no_host_and_hashes_everything():
    assert "//" not in LOCK
    packages = re.findall(r"^\S+==\S+.*(?:\n    --hash=\S+.*)*", LOCK, flags=re.MULTILINE)
    assert len(packages) > 100
    assert all("--hash=sha256:" in package for package in packages)


def test_the_lock_follows_the_pins_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = project["dependency-groups"]
    wanted = [*project["project"]["dependencies"], *groups["cpu"], *groups["data"], *groups["dev"]]
    locked = dict(re.findall(r"^([\w.-]+)==(\S+)", LOCK, flags=re.MULTILINE))
    for requirement in wanted:
        name, _, version = requirement.partition("==")
        assert re.split(r"[><=~\[]", name)[0].lower() in locked
        if version:
            assert locked[name] == version


def test_the_lock_has_no_cuda_package_that_a_cpu_does_without():
    names = set(re.findall(r"^([\w.-]+)==", LOCK, flags=re.MULTILINE))
    assert "fbgemm-gpu-cpu" in names
    assert names.isdisjoint({"fbgemm-gpu", "triton", "cuda-bindings", "nvidia-cusolver", "nvidia-nvtx"})
