"""Persona's safetensors files read with numpy, and the digests that the cloud computes of the same tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from persona.errors import FormatError

Arrays = dict[str, NDArray[Any]]
Floats = NDArray[np.float32]


def arrays_from_bytes(data: bytes, source: str) -> tuple[Arrays, dict[str, Any]]:
    """What ``persona.storage.tensors_to_bytes`` wrote: arrays by name, and the JSON header.

    Raises:
        FormatError: the bytes are no safetensors message, or one without Persona's header.
    """
    try:
        arrays = safetensors.numpy.load(data)
        size = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["persona"])
    # A type that numpy lacks is a KeyError or AttributeError; hostile nesting of JSON a RecursionError.
    except (safetensors.SafetensorError, LookupError, ValueError, TypeError, AttributeError, RecursionError) as error:
        problem = f"{source} is no artifact of Persona, or it is damaged ({type(error).__name__})"
        raise FormatError(f"{problem}: fetch it again") from error
    if not isinstance(header, dict):
        raise FormatError(f"{source} has no header: fetch it again")
    return arrays, header


def read_file(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        FormatError: it is missing or cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise FormatError(f"{path} cannot be read ({error.strerror}): fetch the folder again") from error


def arrays_to_bytes(arrays: Mapping[str, NDArray[Any]], header: Mapping[str, Any]) -> bytes:
    """Inverse of ``arrays_from_bytes``."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    message: bytes = safetensors.numpy.save(contiguous, metadata={"persona": json.dumps(header)})
    return message


def digest_arrays(arrays: Mapping[str, NDArray[Any]]) -> str:
    """``persona.storage.digest_tensors`` of the same numbers: SHA-256 over names, types, shapes and bytes."""
    sha = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        sha.update(f"{name}|torch.{array.dtype}|{tuple(array.shape)}|".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()
