"""How artifacts are stored: safetensors and JSON, digests, files and folders that appear at once or not at all.

torch is loaded by the functions that need it, so that a device without it can use the others.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona.errors import FormatError

if TYPE_CHECKING:
    from torch import Tensor

DIGEST_LENGTH = 64


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256, in hex, over names, types, shapes and bytes, in the order of the names.

    A tensor that lies in pieces on several ranks, all of which have to ask, counts as the whole that it is.
    """
    from persona.training.ranks import blocks

    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        sha.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        for block in blocks(tensor):
            sha.update(block.detach().cpu().contiguous().flatten().numpy().data)
    return sha.hexdigest()


def digest_json(value: Any) -> str:
    """SHA-256, in hex, of a JSON value; the order of keys does not count."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that replaces it when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """An empty folder beside ``path`` that takes its place when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        temporary.chmod(0o755)
        if path.exists():
            old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
            path.replace(old / path.name)
            temporary.replace(path)
            shutil.rmtree(old)
        else:
            temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and a JSON ``header`` into one safetensors file, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(tensors_to_bytes(tensors, header))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what ``save_tensors`` wrote.

    Raises:
        FormatError: the file is missing or damaged.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise FormatError(f"{path} cannot be read ({error.strerror}): give the path of a stored artifact") from error
    return tensors_from_bytes(data, str(path))


def tensors_to_bytes(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> bytes:
    """A safetensors message with a JSON ``header``."""
    import safetensors.torch

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(contiguous, metadata={"persona": json.dumps(header)})


def tensors_from_bytes(data: bytes, source: str = "this message") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Inverse of ``tensors_to_bytes``.

    Raises:
        FormatError: the bytes are no safetensors message, or one without Persona's header.
    """
    import safetensors.torch

    try:
        tensors = safetensors.torch.load(data)
        size = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["persona"])
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise FormatError(f"{source} is no artifact of Persona, or it is damaged ({error}): fetch it again") from error
    return tensors, header


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as readable JSON, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        FormatError: the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise FormatError(f"{path} cannot be read ({error.strerror}): run the step that writes it first") from error
    except ValueError as error:
        raise FormatError(f"{path} is not valid JSON ({error}): run the step that writes it again") from error
