"""The process group: joined once, before anything is trained."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from persona.errors import ConfigError
from persona.training.ranks import Ranks, current

# For joining, and for whatever ranks do together: the slowest has this long to come.
PATIENCE = timedelta(minutes=10)
_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def launched() -> bool:
    """Whether this process was started as one of a group, by torchrun or by what sets the same variables."""
    return all(name in os.environ for name in _VARIABLES)


@contextmanager
def joined(patience: timedelta = PATIENCE) -> Iterator[Ranks]:
    """This process among those it was started with, until the block ends; alone where it was started alone.

    Raises:
        ConfigError: the processes do not find each other.
    """
    _hush()
    if not launched() or dist.is_initialized():
        yield current()
        return
    try:
        store, rank, size = _meeting(patience)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=patience)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise ConfigError(
            f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']} found no process group at {where} ({reason}): "
            "start every process, with the same number of them and an address that all machines reach"
        ) from error
    try:
        yield current()
    finally:
        dist.destroy_process_group()


def ensure() -> Ranks:
    """The group this process is in; a group of its own where it is in none, for TorchRec shards within a group only."""
    _hush()
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    return current()


def _meeting(patience: timedelta) -> tuple[Any, int, int]:
    """Where the processes leave their addresses for each other, this one's rank, and how many there are.

    The store of torchrun outlives a restart, so that a process could find the address of one that was killed: what belongs to
    one start has names of its own. Machines count restarts each for itself; several of them need a store for each start.
    """
    store, rank, size = next(rendezvous("env://", timeout=patience))
    if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":
        start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"start {start}", store)  # type: ignore[attr-defined]
    return store, rank, size


def _hush() -> None:
    """No warning at every step of every process that torch wants TorchRec to change its kind of shards."""
    warnings.filterwarnings("ignore", message="Please use DTensor instead", category=FutureWarning)
