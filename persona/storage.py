"""How artifacts are stored: safetensors and JSON, digests, files and folders that appear at once or not at all.

torch is loaded by the functions that need it, so that a device without it can use the others.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona.errors import FormatError

try:
    import fcntl
except ImportError:  # a system without such locks, where leftovers are not swept
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from torch import Tensor

# Hidden names: .<name>.<random>.partial is being written or removed, .<name>.old-<random>.partial was moved out of the way.
_PARTIAL, _OLD = ".partial", "old-"
_KEPT = re.compile(rf"\.(.+)\.{_OLD}[0-9a-f]{{8}}{re.escape(_PARTIAL)}")
# As <linux/fcntl.h> and <linux/fs.h> number them.
_HERE, _RENAME_EXCHANGE = -100, 2


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
    """A temporary path beside ``path`` that replaces it when the block ends without an error, and then is on the disk."""
    path = Path(path)
    with _temporary(path, _new_file) as temporary:
        yield temporary
        temporary.chmod(0o644)
        if _unfinished(path.parent):  # the folder is written out as a whole
            temporary.replace(path)
            return
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """An empty folder beside ``path`` that takes its place when the block ends without an error, and then is on the disk.

    A folder that was there before is exchanged for it in one step: whoever reads ``path``, or kills this process, finds the old
    folder or the new one, each whole.
    """
    path = Path(path)
    with _temporary(path, _new_folder) as temporary:
        yield temporary
        for folder, _, names in os.walk(temporary):
            for name in names:
                _sync(Path(folder, name))
            _sync(Path(folder))
        temporary.chmod(0o755)
        if os.path.lexists(path):
            _exchange(temporary, path)
        else:
            temporary.replace(path)
        _sync(path.parent)


def holds_other(folder: Path, header: str) -> bool:
    """Whether something is at ``folder`` that has no file ``header``; an empty folder is nothing."""
    return folder.exists() and not (folder / header).is_file() and (not folder.is_dir() or any(folder.iterdir()))


def remove_folders(paths: Sequence[Path]) -> None:
    """Remove folders of one parent, each at once and in this order; their contents go when all are out of sight.

    Killed in between, it leaves the later ones whole; what is out of sight is removed with the next write beside it.
    """
    hidden = [_beside(path) for path in paths]
    for path, target in zip(paths, hidden, strict=True):
        path.rename(target)
        _sync(path.parent)
    for target in hidden:
        _remove(target)


def sweep(folder: Path) -> None:
    """Remove what killed processes left of files and folders in ``folder``; what a living one writes is locked, and stays."""
    for left in folder.glob(f".*{_PARTIAL}") if fcntl is not None else ():
        kept = _KEPT.fullmatch(left.name)
        with _locked(left) as free, suppress(OSError):
            if free and kept is not None and not (folder / kept[1]).exists():
                left.rename(folder / kept[1])
            elif free:
                _remove(left)


@contextmanager
def _temporary(path: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """A locked file or folder beside ``path``, which is gone afterwards unless it was moved."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not _unfinished(path.parent):
        sweep(path.parent)
    while True:
        temporary = _beside(path)
        make(temporary)
        with _locked(temporary) as free:
            # Until it was locked, another process could take it for a leftover.
            if not free or not temporary.exists():
                continue
            try:
                yield temporary
                return
            finally:
                with suppress(OSError):
                    _remove(temporary)


def _unfinished(folder: Path) -> bool:
    """Whether a folder is part of one that is still being written."""
    return any(part.endswith(_PARTIAL) for part in folder.parts)


def _beside(path: Path, kind: str = "") -> Path:
    """A hidden name in the same folder that nothing has."""
    return path.parent / f".{path.name}.{kind}{secrets.token_hex(4)}{_PARTIAL}"


def _new_file(path: Path) -> None:
    path.touch(mode=0o600, exist_ok=False)


def _new_folder(path: Path) -> None:
    path.mkdir(mode=0o700)


def _remove(path: Path) -> None:
    """A file or link, or a folder with all that is in it; nothing where there is nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold the lock of a file or folder while the block runs, and tell whether it was free; ends with the process at the latest."""
    if fcntl is None:
        yield True
        return
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except OSError as error:  # a file system without locks has none to wait for
            free = error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
        yield free
    finally:
        os.close(handle)


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if os.name == "nt" and path.is_dir():  # folders cannot be opened there
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that knows no such thing
            raise
    finally:
        os.close(handle)


def _exchange(new: Path, path: Path) -> None:
    """Put ``new`` in the place of ``path``, and the other way round, in one step where the system can.

    Elsewhere ``path`` is missing for the moment between two renames; a kill in that moment is mended by ``sweep``.
    """
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if os.name == "posix" else None
    if rename is not None and not rename(_HERE, os.fsencode(new), _HERE, os.fsencode(path), _RENAME_EXCHANGE):
        return
    old = _beside(path, _OLD)
    with _locked(path):
        path.rename(old)
        try:
            new.rename(path)
        except OSError:
            old.rename(path)
            raise
    _remove(old)


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
