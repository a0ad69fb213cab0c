"""Whether the installed packages belong together, by their versions and by importing them.

fbgemm declares no torch version and comes in a CUDA and a CPU package that share one folder, so that installers combine what
cannot be loaded together.
"""

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution, distributions
from importlib.util import find_spec
from pathlib import Path

from pipelines.doctor.finding import Finding

# The versions this release is tested with.
PINS = {
    "torch": "2.14.1",
    "torchvision": "0.29.1",
    "torchrec": "1.9.2",
    "fbgemm-gpu-cpu": "1.9.0",
    "fbgemm-gpu": "1.9.0",
    "torchmetrics": "1.0.3",
    "mlflow": "3.17.2",
    "mlflow-skinny": "3.17.2",
    "mlflow-tracing": "3.17.2",
}
# Releases of torch, and those of torchvision, torchrec and fbgemm that load with it.
TORCHVISION = {"2.13": "0.28", "2.14": "0.29"}
TORCHREC = {"2.13": "1.8", "2.14": "1.9"}
# What torch's CUDA wheels bring along, but torch does not need to load on a machine without a GPU.
SURPLUS = ("triton", "cuda-bindings", "nvidia-cusolver", "nvidia-nvtx", "nvidia-cuda-cccl")

PROBE = "import json, torch, torchvision, fbgemm_gpu, torchrec; print(json.dumps(torch.cuda.is_available()))"
PROBE_SECONDS = 300


def install(*packages: str) -> str:
    """The line that puts ``packages`` at their pinned versions into this environment, and nothing else."""
    pinned = " ".join(f"{name}=={PINS[name]}" for name in packages)
    uv, python = _uv()
    return (
        f"{uv} install {python}--reinstall --no-deps {pinned}"
        if python
        else f"{uv} install --force-reinstall --no-deps {pinned}"
    )


def uninstall(*packages: str) -> str:
    """The line that removes ``packages`` from this environment."""
    uv, python = _uv()
    return f"{uv} uninstall {python or '-y '}{' '.join(packages)}"


def _uv() -> tuple[str, str]:
    """The installer of this environment and how it is told which one; environments made by uv have no pip."""
    if any(distributions(name="pip")):
        return f"{sys.executable} -m pip", ""
    own = Path(sys.prefix).parent / ".uv" / "bin" / "uv"
    return f"{own if own.exists() else 'uv'} pip", f"--python {sys.executable} "


def installed() -> dict[str, str]:
    """The versions of the packages in ``PINS`` and ``SURPLUS``; torch's and torchvision's with their CUDA build."""
    versions = {}
    for name in (*PINS, *SURPLUS):
        try:
            versions[name] = distribution(name).version
        except PackageNotFoundError:
            continue
    for name in versions.keys() & {"torch", "torchvision"}:
        spec = find_spec(name)
        if spec and spec.origin and (file := Path(spec.origin).with_name("version.py")).exists():
            build = re.search(r"__version__ = '([^']+)'", file.read_text())
            versions[name] = build[1] if build else versions[name]
    return versions


def has_gpu() -> bool:
    """Whether an NVIDIA device is there, asked without torch."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()


def check_python(version: tuple[int, int] = (sys.version_info.major, sys.version_info.minor)) -> Finding:
    """Python has to be 3.11: fbgemm's and torchrec's pinned wheels are tested there."""
    if version == (3, 11):
        return Finding("python", "ok", f"Python {sys.version.split()[0]}")
    found = ".".join(map(str, version))
    return Finding(
        "python", "fail", f"this is Python {found}, Persona needs 3.11", "make clean setup PYTHON=python3.11"
    )


def check_packages(versions: Mapping[str, str], gpu: bool) -> list[Finding]:
    """Judge whether package ``versions`` (name -> version) belong together on a machine with or without a GPU."""
    missing = [name for name in ("torch", "torchvision", "torchrec") if name not in versions]
    if missing:
        return [Finding("packages", "fail", f"{', '.join(missing)} not installed", install(*missing))]
    return [
        _fbgemm(versions, gpu),
        _pair("torchrec", versions, TORCHREC),
        _torchvision(versions, gpu),
        _torchmetrics(versions),
        _mlflow(versions),
        _cuda(versions, gpu),
    ]


def _release(version: str) -> str:
    """Major and minor: ``2.14`` of ``2.14.1+cu130``."""
    return ".".join(version.partition("+")[0].split(".")[:2])


def _fbgemm(versions: Mapping[str, str], gpu: bool) -> Finding:
    names = [name for name in ("fbgemm-gpu", "fbgemm-gpu-cpu") if name in versions]
    right = "fbgemm-gpu" if gpu else "fbgemm-gpu-cpu"
    match names:
        case []:
            return Finding("fbgemm", "fail", "fbgemm, which torchrec needs, is not installed", install(right))
        case [_, _]:
            detail = "fbgemm-gpu and fbgemm-gpu-cpu are both installed and overwrite each other's files"
            return Finding("fbgemm", "fail", detail, f"{uninstall(*names)} && {install(right)}")
        case ["fbgemm-gpu"] if not gpu:
            detail = "fbgemm-gpu needs an NVIDIA driver, which this machine does not have"
            return Finding("fbgemm", "fail", detail, f"{uninstall('fbgemm-gpu')} && {install('fbgemm-gpu-cpu')}")
        case _:
            return _pair(names[0], versions, TORCHREC)


def _pair(name: str, versions: Mapping[str, str], releases: Mapping[str, str]) -> Finding:
    """Whether the package ``name`` is of the release that ``releases`` gives for the installed torch."""
    torch, found = versions["torch"], versions[name]
    wanted = releases.get(_release(torch))
    if wanted is None:
        return Finding(
            name, "fail", f"no {name} is known to load with torch {torch}", install("torch", "torchvision", name)
        )
    if _release(found) != wanted:
        mend = install(name) if _release(torch) == _release(PINS["torch"]) else install("torch", "torchvision", name)
        return Finding(name, "fail", f"{name} {found} does not load with torch {torch}, which takes {wanted}", mend)
    return Finding(name, "ok", f"{name} {found} with torch {torch}")


def _torchvision(versions: Mapping[str, str], gpu: bool) -> Finding:
    finding = _pair("torchvision", versions, TORCHVISION)
    builds = {name: versions[name].partition("+")[2] for name in ("torch", "torchvision")}
    if finding.status != "ok" or builds["torch"] == builds["torchvision"]:
        return finding
    detail = f"torch is built for {builds['torch'] or 'no CUDA'}, torchvision for {builds['torchvision'] or 'no CUDA'}"
    return Finding("torchvision", "fail" if gpu else "warn", detail, install("torch", "torchvision"))


def _torchmetrics(versions: Mapping[str, str]) -> Finding:
    found, wanted = versions.get("torchmetrics"), PINS["torchmetrics"]
    if found == wanted:
        return Finding("torchmetrics", "ok", f"torchmetrics {found}, as torchrec asks for")
    detail = f"torchrec asks for torchmetrics {wanted} exactly, {found or 'none'} is installed"
    return Finding("torchmetrics", "fail", detail, install("torchmetrics"))


def _mlflow(versions: Mapping[str, str]) -> Finding:
    parts = ("mlflow", "mlflow-skinny", "mlflow-tracing")
    found = {versions.get(name) for name in parts}
    if len(found) == 1 and None not in found:
        return Finding("mlflow", "ok", f"mlflow {versions['mlflow']}")
    listing = ", ".join(f"{name} {versions.get(name, 'missing')}" for name in parts)
    return Finding("mlflow", "fail", f"the parts of mlflow differ: {listing}", install(*parts))


def _cuda(versions: Mapping[str, str], gpu: bool) -> Finding:
    cuda = versions["torch"].partition("+")[2].startswith("cu")
    if gpu and (not cuda or "fbgemm-gpu" not in versions):
        mend = ".uv/bin/uv sync --no-group cpu --group gpu"
        return Finding("cuda", "warn", "this machine has a GPU, the installed packages are for the CPU", mend)
    surplus = [name for name in SURPLUS if name in versions]
    if cuda and not gpu:
        size = f"torch's CUDA libraries take {_gigabytes():.1f} GB; there is no GPU, yet torch needs them to load"
        if surplus:
            return Finding("cuda", "warn", f"{size}, but not {', '.join(surplus)}", uninstall(*surplus))
        return Finding("cuda", "ok", size)
    return Finding("cuda", "ok", "CUDA packages and a GPU" if cuda else "packages and machine without CUDA")


def _gigabytes() -> float:
    """Size of the CUDA libraries that Python packages have brought."""
    folders = [Path(path) / "nvidia" for path in sys.path if path.endswith("site-packages")]
    files = (file for folder in folders if folder.is_dir() for file in folder.rglob("*") if file.is_file())
    return sum(file.stat().st_size for file in files) / 1e9


def check_imports() -> Finding:
    """Import torch, torchvision, fbgemm and torchrec in a process of their own."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=PROBE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return Finding("imports", "fail", f"importing torch took more than {PROBE_SECONDS} s", "make clean setup")
    if done.returncode != 0:
        return recognise(done.stderr)
    device = "a GPU" if json.loads(done.stdout.splitlines()[-1]) else "the CPU"
    return Finding("imports", "ok", f"torch, torchvision, fbgemm and torchrec load, on {device}")


def recognise(stderr: str) -> Finding:
    """What the error output of a failed import means."""
    patterns = {
        r"(libcuda|libnvidia-ml)\.so[\s\S]*Could not load this library: .*fbgemm": (
            "fbgemm is the CUDA build, and there is no NVIDIA driver",
            f"{uninstall('fbgemm-gpu')} && {install('fbgemm-gpu-cpu')}",
        ),
        r"Could not load this library: .*fbgemm": (
            "fbgemm is built for another torch",
            install("torch", "torchvision", "fbgemm-gpu-cpu"),
        ),
        r"operator torchvision::\w+ does not exist": (
            "torchvision is built for another torch",
            install("torch", "torchvision"),
        ),
        r"(lib(cu|nccl|nv)[\w.]+): cannot open shared object file": (
            "{0}, which torch needs even without a GPU, is missing",
            "make clean setup",
        ),
        r"No module named '([\w.]+)'": ("the package {0} is missing", "make clean setup"),
        r"undefined symbol": ("a library is built for another torch", "make clean setup"),
    }
    last = stderr.strip().rpartition("\n")[2] or "the process ended without a word"
    for pattern, (detail, mend) in patterns.items():
        if found := re.search(pattern, stderr):
            return Finding("imports", "fail", f"{detail.format(*found.groups())} ({last})", mend)
    return Finding("imports", "fail", f"the packages do not load ({last})", "make clean setup")
