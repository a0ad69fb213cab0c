"""Hosts whose item table is sharded by rows over all ranks, and learns by fused row-wise Adagrad.

Row-wise, for there is one table, and every rank should hold as little of it as the others. Values are drawn by blocks of
rows, each from a seed of its own, so that every rank draws no more than its shard, and all shards are those of one table,
however many there are.

Letters: V items, d width, W ranks.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torchrec import EmbeddingCollection

from persona.errors import ConfigError
from persona.training.ranks import BLOCK_ROWS, Ranks
from recsys.distributed import group
from recsys.hosts import Host, HostConfig, make_host
from recsys.hosts.base import INITIAL_SCALE, TABLE, make_table, table_on

WEIGHT = f"embeddings.{TABLE}.weight"
EPSILON = 1e-8
RESERVED = 0.15  # of a machine's memory, for everything but the table
_CPU = torch.device("cpu")


def new_host(config: HostConfig, seed: int, learning_rate: float) -> Host:
    """An untrained host with a sharded table, of which no process ever holds more than its shard.

    Args:
        config: of the host.
        seed: of all values.
        learning_rate: of the table.

    Raises:
        ConfigError: the processes are too few for a table of this size.
    """
    torch.manual_seed(seed)
    with table_on("meta"):
        host = make_host(config)
    shard(host, learning_rate)
    for start, rows in _local(host):
        _draw(rows, start, seed)
    return host


def shard(host: Host, learning_rate: float) -> None:
    """Shard the table of ``host`` in place; the values of a table that is no longer on "meta" are kept.

    Raises:
        ConfigError: the processes are too few for a table of this size.
    """
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from torchrec.distributed.embedding import EmbeddingCollectionSharder
    from torchrec.distributed.model_parallel import DistributedModelParallel
    from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints
    from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
    from torchrec.distributed.planner.types import PlannerError

    ranks = group.ensure()
    values = host.embedding.embeddings[TABLE].weight.detach()
    host.embedding = make_table(host.config, "meta")
    optimizer = {"optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD, "learning_rate": learning_rate, "eps": EPSILON}
    sharders = [EmbeddingCollectionSharder(fused_params=optimizer)]
    with _quiet_planner():
        planner = EmbeddingShardingPlanner(
            topology=_topology(ranks),
            storage_reservation=FixedPercentageStorageReservation(percentage=RESERVED),
            constraints={TABLE: ParameterConstraints(sharding_types=["row_wise"], compute_kernels=["fused"])},
        )
        try:
            plan = planner.collective_plan(host, sharders, dist.group.WORLD)
        except PlannerError as error:
            raise ConfigError(
                f"a table of {host.config.n_items + 1:,} rows of {host.config.dim} does not fit into the memory of "
                f"{ranks.size} process(es): start more of them, on more machines"
            ) from error
        # Shards the table within the host, which stays what it is: nothing is wrapped, as gradients of the dense part are
        # averaged by what trains it.
        DistributedModelParallel(host, device=_CPU, plan=plan, sharders=sharders, init_data_parallel=False)
    if values.device.type != "meta":
        for start, rows in _local(host):
            rows.copy_(values[start : start + len(rows)])


def unshard(host: Host) -> None:
    """Make the table of a host that one process has sharded an ordinary one, in place and without a copy.

    Raises:
        ValueError: there are shards on other ranks.
    """
    ((start, rows),) = _local(host)
    if start or len(rows) != host.config.n_items + 1:
        raise ValueError("only a table that lies on one rank can be made an ordinary one")
    host.embedding = make_table(host.config, "meta")
    host.embedding.embeddings[TABLE].weight = nn.Parameter(rows)


def is_sharded(host: Host) -> bool:
    """Whether the table of ``host`` is sharded."""
    return not isinstance(host.embedding, EmbeddingCollection)


def parameter(host: Host) -> nn.Parameter:
    """The table's parameter, sharded or not."""
    found: nn.Parameter = host.embedding.embeddings[TABLE].weight
    return found


def optimizer_state(host: Host) -> dict[str, Tensor]:
    """What the table's optimizer knows, by name: the sum of squared gradients a row, (V + 1,), in pieces; no copy."""
    state = host.embedding.fused_optimizer.state_dict()["state"][WEIGHT]
    return {name: tensor for name, tensor in state.items() if isinstance(tensor, ShardedTensor)}


def forget_optimizer(host: Host) -> None:
    """Let the table learn as at the start, whatever it learned before."""
    for tensor in optimizer_state(host).values():
        for piece in tensor.local_shards():  # type: ignore[attr-defined]
            piece.tensor.zero_()


def _local(host: Host) -> Iterator[tuple[int, Tensor]]:
    """This rank's shards of the table: first row, and the rows (n, d) themselves."""
    for piece in host.embedding.state_dict()[WEIGHT].local_shards():
        yield int(piece.metadata.shard_offsets[0]), piece.tensor


def _draw(rows: Tensor, start: int, seed: int) -> None:
    """Fill rows [start, start + n) of a table with its initial values, in place: (n, d); row 0, the padding, is zero."""
    stop = start + len(rows)
    for block in range(start // BLOCK_ROWS, -(-stop // BLOCK_ROWS)):
        first = block * BLOCK_ROWS
        generator = torch.Generator().manual_seed(seed * 1_000_003 + block)
        drawn = torch.empty(BLOCK_ROWS, rows.shape[1]).normal_(0.0, INITIAL_SCALE, generator=generator)
        low, high = max(start, first), min(stop, first + BLOCK_ROWS)
        rows[low - start : high - start] = drawn[low - first : high - first]
    if start == 0 and len(rows):
        rows[0] = 0.0


def _topology(ranks: Ranks) -> object:
    """What the planner plans for: the processes of a machine share its memory."""
    from torchrec.distributed.planner import Topology

    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Topology(world_size=ranks.size, local_world_size=local, compute_device="cpu", ddr_cap=memory // local)


@contextmanager
def _quiet_planner() -> Iterator[None]:
    """Without the planner's remarks on how it was called, on every start of every process."""
    logger = logging.getLogger("torchrec.distributed.planner")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
