"""Checkpoints of what lies in pieces on several ranks: folders of safetensors that torch.distributed.checkpoint writes.

Every rank writes what it holds; any number of ranks, also a single process without a process group, reads what it needs. A
folder of checkpoints, which all machines have to see, looks so::

    checkpoints/
      00003-0000000/      three epochs are done; header.json and the shards
      00003-0000200/      and 200 steps of the next
      .00003-0000400/     being written; ignored, and removed by the next one

A checkpoint gets its name when it is complete. The newest one is kept, and the one of the best epoch.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load as load_shards
from torch.distributed.checkpoint.state_dict_saver import save as save_shards

from persona.errors import FormatError
from persona.storage import read_json, write_json
from persona.training.ranks import Ranks

HEADER = "header.json"
FORMAT = "sharded checkpoint"


def name_of(epochs: int, steps: int) -> str:
    """The name of a checkpoint after this many whole epochs and steps of the next; names sort by age."""
    return f"{epochs:05d}-{steps:07d}"


def save(folder: Path, name: str, tensors: Mapping[str, Tensor], header: Mapping[str, Any], ranks: Ranks) -> None:
    """Write a checkpoint; all ranks together. Tensors that are not in pieces are the same on all ranks.

    Args:
        folder: of all checkpoints of a training.
        name: of this one.
        tensors: by name.
        header: plain values.
        ranks: who writes.
    """
    partial = folder / f".{name}"
    if ranks.main:
        for left in folder.glob(".*"):
            shutil.rmtree(left)
        partial.mkdir(parents=True)
    ranks.wait()
    save_shards(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(partial), save_distributed=True))
    ranks.wait()
    if ranks.main:
        write_json(partial / HEADER, {"format": FORMAT, **header})
        partial.replace(folder / name)


def newest(folder: Path) -> str | None:
    """The name of the newest complete checkpoint, if there is one."""
    names = [path.parent.name for path in folder.glob(f"*/{HEADER}") if not path.parent.name.startswith(".")]
    return max(names, default=None)


def retain(folder: Path, names: set[str]) -> None:
    """Remove all complete checkpoints but ``names``."""
    for path in folder.iterdir():
        if path.name not in names and not path.name.startswith("."):
            shutil.rmtree(path)


def read_header(folder: Path, name: str) -> dict[str, Any]:
    """The plain values of a checkpoint.

    Raises:
        FormatError: it is damaged, or something else.
    """
    header = read_json(folder / name / HEADER)
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise FormatError(f"{folder / name} is no checkpoint of a sharded table: delete it to start anew")
    return header


def load(
    folder: Path, name: str, pieces: Mapping[str, Tensor], wanted: Callable[[str], bool] = lambda name: True
) -> dict[str, Tensor]:
    """Read a checkpoint, in a process group (all ranks together) or without one.

    Args:
        folder: of all checkpoints of a training.
        name: of this one.
        pieces: tensors that lie in pieces; they are filled in place.
        wanted: which of the others to read.

    Returns:
        The others, whole.

    Raises:
        FormatError: the checkpoint is damaged.
    """
    reader = HuggingFaceStorageReader(str(folder / name))
    alone = not torch.distributed.is_initialized()
    try:
        stored = reader.read_metadata().state_dict_metadata
        whole = {
            key: torch.empty(found.size, dtype=found.properties.dtype)  # type: ignore[union-attr]
            for key, found in stored.items()
            if key not in pieces and wanted(key)
        }
        # Read in place, for a table is too large to be there twice.
        load_shards({**whole, **pieces}, storage_reader=HuggingFaceStorageReader(str(folder / name)), no_dist=alone)
    except Exception as error:  # safetensors, torch and the file system each have their own
        reason = str(error).strip().splitlines()[0]
        raise FormatError(
            f"{folder / name} cannot be read ({reason}): delete it to go on from an older checkpoint or to start anew"
        ) from error
    return whole
