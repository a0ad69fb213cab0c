"""What a log of a given size will take: memory a device, sharding, time and money, before anything is bought or started.

Memory and sharding come from TorchRec's ``EmbeddingShardingPlanner`` and its estimators, rates and sizes from what was measured
(``docs/evidence/scale-*.json``, the outputs of ``benchmarks``), the rest is arithmetic. Every line says which.

Shapes: V items, d embedding width, T context length.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona.errors import ConfigError, FormatError, check_each
from persona.storage import read_json

MEASURED = Path("docs/evidence")
GIB = 2**30
# Share of a device's memory that tables must not take: dense part, activations, allocator.
RESERVED = 0.15
# Bytes of a float32 and of a float64, and of a row of statistics beside its sums.
FLOAT, DOUBLE, STATISTICS_ROW = 4, 8, 24
LAYERS = 2
ADAM_COPIES = 4  # parameters, gradients and two moments
# Devices beyond which no plan is made.
LARGEST = 1 << 12


@dataclass(frozen=True)
class Workload:
    """What is to be learned, and how.

    Attributes:
        users: of the log.
        items: V.
        events: of the log; each is a training row of an epoch.
        dimension: d.
        preset: of the host, ``paper`` (T = 10) or ``modern`` (T = 50).
        epochs: over all events.
        batch_size: rows a device and step.

    Raises:
        ConfigError: a number is below 1.
    """

    users: int
    items: int
    events: int
    dimension: int = 64
    preset: str = "modern"
    epochs: int = 1
    batch_size: int = 1024

    def __post_init__(self) -> None:
        check_each(self, ("users", "items", "events", "dimension", "epochs", "batch_size"), 1)


@dataclass(frozen=True)
class Cluster:
    """What it is to run on.

    Attributes:
        devices: GPUs, or processes where ``kind`` is ``cpu``.
        memory_gib: of one device.
        kind: ``cuda`` or ``cpu``.
        per_node: devices of one machine.
        price: of a device for an hour, in any currency.
        rows_per_second: training rows that one device manages; 0 takes what was measured on one CPU core.
        efficiency: share of its rate that a device keeps among others.

    Raises:
        ConfigError: a number is out of range.
    """

    devices: int = 1
    memory_gib: float = 80.0
    kind: str = "cuda"
    per_node: int = 8
    price: float = 0.0
    rows_per_second: float = 0.0
    efficiency: float = 1.0

    def __post_init__(self) -> None:
        if self.devices < 1 or self.per_node < 1 or self.memory_gib <= 0:
            raise ConfigError("devices, devices of a node and memory have to be positive")
        if self.price < 0 or self.rows_per_second < 0 or not 0 < self.efficiency <= 1:
            raise ConfigError("price and rows a second cannot be negative, and efficiency lies in (0, 1]")


@dataclass(frozen=True)
class Line:
    """One number of a plan.

    Attributes:
        what: in words.
        value: in ``unit``.
        unit: of the value.
        basis: where it comes from: ``planner``, ``arithmetic``, or the file that it was measured in.
    """

    what: str
    value: float
    unit: str
    basis: str


@dataclass(frozen=True)
class TablePlan:
    """How TorchRec lays the item table out.

    Attributes:
        sharding: ``row_wise`` or ``table_wise``.
        kernel: that looks rows up.
        bytes_a_device: of the fullest device: rows, row-wise Adagrad's state, buffers of the exchange.
        step_ms: the estimators' time of lookups and exchange in a step, forward and backward, on the slowest device.
    """

    sharding: str
    kernel: str
    bytes_a_device: int
    step_ms: float


def plan(work: Workload, cluster: Cluster, measured: Path = MEASURED) -> list[Line]:
    """All lines of a plan.

    Args:
        work: to be done.
        cluster: to do it on.
        measured: folder of measured constants.

    Raises:
        ConfigError: the tables do not fit; the message says how many devices would do.
        FormatError: a measured constant is missing.
    """
    constants = Constants.read(measured, work.preset)
    return [*_preparation(work, constants), *_training(work, cluster, constants), *_serving(work, constants)]


@dataclass(frozen=True)
class Constants:
    """What was measured.

    Attributes:
        parquet_bytes: of an event in the log.
        prepare_rows: that one core prepares a second.
        prepare_gib: fixed part of preparing's memory.
        prepare_bytes: of an id in preparing's memory.
        train_rows: that one core trains a second.
        context: T of these rows.
        retrieve_ms: that one core searches a million numbers of a float32 item table for one query.
    """

    parquet_bytes: float
    prepare_rows: float
    prepare_gib: float
    prepare_bytes: float
    train_rows: float
    context: int
    retrieve_ms: float

    @classmethod
    def read(cls, folder: Path, preset: str) -> Constants:
        """Those of a folder.

        Raises:
            ConfigError: unknown preset.
            FormatError: a file is missing or lacks a number.
        """
        from recsys.hosts import HostConfig

        context = HostConfig.preset("sasrec", preset, 1).max_length
        try:
            *_, before, last = read_json(folder / "scale-prepare.json")
            trained = next(r for r in read_json(folder / "scale-embedding.json") if r["preset"] == preset)
            searched = [r for r in read_json(folder / "scale-retrieval.json")["speed"] if r["way"] == "exact, float32"]
            found = max((r for r in searched if r["batch"] == 1), key=lambda r: r["items"])
            more = _ids(last["rows"]) - _ids(before["rows"])
            each = GIB * (last["streamed"]["peak_gib"] - before["streamed"]["peak_gib"]) / more
            return cls(
                parquet_bytes=1e6 * last["parquet_mb"] / last["rows"],
                prepare_rows=last["rows"] / last["streamed"]["cpu_seconds"],
                prepare_gib=last["streamed"]["peak_gib"] - each * _ids(last["rows"]) / GIB,
                prepare_bytes=each,
                train_rows=trained["torchrec_rows_per_second"],
                context=context,
                retrieve_ms=found["ms_a_query"] / (found["table_mib"] * 2**20 / FLOAT / 1e6),
            )
        except (KeyError, ValueError, StopIteration, TypeError) as error:
            raise FormatError(
                f"{folder} lacks a measured constant ({error}): run the benchmarks again, or give their folder"
            ) from error


def _ids(rows: int) -> int:
    """Users and items of the logs that ``benchmarks.prepare`` makes."""
    return rows // 40 + rows // 100


def _preparation(work: Workload, found: Constants) -> Iterator[Line]:
    file = "scale-prepare.json"
    yield Line("log in Parquet", work.events * found.parquet_bytes / GIB, "GiB", file)
    yield Line("prepare, one core", work.events / found.prepare_rows / 3600, "h", file)
    memory = found.prepare_gib + (work.users + work.items) * found.prepare_bytes / GIB
    yield Line("prepare, memory", memory, "GiB", f"{file}, by users and items")


def _training(work: Workload, cluster: Cluster, found: Constants) -> Iterator[Line]:
    table = work.items * work.dimension * FLOAT
    yield Line("item table, float32", table / GIB, "GiB", "arithmetic")
    laid = lay_out(work, cluster, found.context)
    yield Line(f"tables a device ({laid.sharding}, {laid.kernel})", laid.bytes_a_device / GIB, "GiB", "planner")
    dense = dense_parameters(work) * FLOAT * ADAM_COPIES
    yield Line("dense part and its Adam, a device", dense / GIB, "GiB", "arithmetic")
    free = cluster.memory_gib - (laid.bytes_a_device + dense) / GIB
    yield Line("left a device, for activations", free, "GiB", "arithmetic")
    yield Line("lookups and exchange a step", laid.step_ms, "ms", "planner")
    rate, basis = cluster.rows_per_second, "given"
    if not rate:
        rate, basis = found.train_rows, "scale-embedding.json: one CPU core, a GPU does more"
    exchange = laid.step_ms / 1000 / work.batch_size
    total = cluster.devices * cluster.efficiency / (1 / rate + exchange)
    yield Line("training rows a second, all devices", total, "rows/s", basis)
    hours = work.events * work.epochs / total / 3600
    yield Line(f"training, {work.epochs} epoch(s)", hours, "h", "arithmetic")
    yield Line("device-hours", hours * cluster.devices, "h", "arithmetic")
    if cluster.price:
        yield Line("cost of training", hours * cluster.devices * cluster.price, "currency", "price given")


def _serving(work: Workload, found: Constants) -> Iterator[Line]:
    from recsys.serving.item_tables import BITS

    sums = LAYERS * 32 * DOUBLE + STATISTICS_ROW
    yield Line("statistics of a refinement, a prototype a user", work.users * sums / GIB, "GiB", "arithmetic")
    for kind, bits in BITS.items():
        size = work.items * ((work.dimension * bits + 7) // 8 + 4) / GIB
        yield Line(f"item table for serving, {kind}", size, "GiB", "arithmetic")
    exact = found.retrieve_ms * work.items * work.dimension / 1e6
    yield Line("exact retrieval, one query and core", exact, "ms", "scale-retrieval.json")


def lay_out(work: Workload, cluster: Cluster, context: int) -> TablePlan:
    """TorchRec's plan of the item table with fused row-wise Adagrad.

    Raises:
        ConfigError: the table does not fit; the message says how many devices would do.
    """
    from torchrec.distributed.planner.types import PlannerError

    with _quiet():
        try:
            return _planned(work, cluster.devices, cluster, context)
        except PlannerError:
            enough = _enough(work, cluster, context)
    size = work.items * work.dimension * FLOAT / GIB
    hint = f"{enough} would do" if enough else "give devices with more memory or a smaller dimension"
    raise ConfigError(
        f"an item table of {size:,.1f} GiB does not fit {cluster.devices} device(s) of {cluster.memory_gib:g} GiB: {hint}"
    )


def _enough(work: Workload, cluster: Cluster, context: int) -> int:
    """A power of two of devices that the table fits, the smallest or the next; 0 if none does."""
    from torchrec.distributed.planner.types import PlannerError

    fewest = work.items * work.dimension * FLOAT / (cluster.memory_gib * GIB * (1 - RESERVED))
    first = 1 << max(cluster.devices, int(fewest)).bit_length()
    # What comes on top of the rows may need twice as many, hardly more.
    for devices in (first, 2 * first):
        if devices > LARGEST:
            break
        try:
            _planned(work, devices, cluster, context)
        except PlannerError:
            continue
        return devices
    return 0


def _planned(work: Workload, devices: int, cluster: Cluster, context: int) -> TablePlan:
    import torch
    from torchrec import EmbeddingCollection, EmbeddingConfig
    from torchrec.distributed.embedding import EmbeddingCollectionSharder
    from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
    from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
    from torchrec.optim import RowWiseAdagrad
    from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

    table = EmbeddingConfig(
        name="item", num_embeddings=work.items + 1, embedding_dim=work.dimension, feature_names=["item"]
    )
    module = EmbeddingCollection(tables=[table], device=torch.device("meta"))
    apply_optimizer_in_backward(RowWiseAdagrad, module.parameters(), {"lr": 0.01})
    memory = int(cluster.memory_gib * GIB)
    topology = Topology(
        world_size=devices,
        compute_device=cluster.kind,
        local_world_size=min(devices, cluster.per_node),
        hbm_cap=memory if cluster.kind == "cuda" else None,
        ddr_cap=memory if cluster.kind == "cpu" else None,
    )
    constraint = ParameterConstraints(
        sharding_types=["row_wise" if devices > 1 else "table_wise"],
        compute_kernels=["fused"],
        # A row looks up its context and its candidates.
        pooling_factors=[float(context + 5)],
    )
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=work.batch_size,
        constraints={"item": constraint},
        storage_reservation=FixedPercentageStorageReservation(RESERVED),
        debug=False,
    )
    planner.plan(module, [EmbeddingCollectionSharder()])
    option = planner.get_selected_options()[0]
    bytes_of: dict[Any, int] = {}
    ms_of: dict[Any, float] = {}
    for shard in option.shards:
        stored = shard.storage.hbm + shard.storage.ddr
        bytes_of[shard.rank] = bytes_of.get(shard.rank, 0) + stored
        ms_of[shard.rank] = ms_of.get(shard.rank, 0.0) + shard.perf.total
    return TablePlan(option.sharding_type, option.compute_kernel, max(bytes_of.values()), max(ms_of.values()))


def dense_parameters(work: Workload) -> int:
    """Parameters of a SASRec of this preset and width without its item table: what every device holds."""
    from recsys.hosts import HostConfig, make_host

    host = make_host(HostConfig.preset("sasrec", work.preset, 1, dim=work.dimension))
    of_table = {id(parameter) for parameter in host.embedding.parameters()}
    return sum(parameter.numel() for parameter in host.parameters() if id(parameter) not in of_table)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without TorchRec's warnings about how topologies are built in other places."""
    import warnings

    logger = logging.getLogger("torchrec.distributed.planner")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
