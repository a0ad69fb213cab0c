"""Prototype banks in MLflow's model registry: one version a bank version, of any task.

    bank/                 the bank (see ``persona.prototypes.bank_format``)
    edits.safetensors     the editing matrices of a few devices
    edits.parquet         the same devices, a row each: prototype, norm and saturation a layer, what remains
    interface.json        what goes in and what comes out, with shapes
    figures/*.png

What the comparison pages show as text are tags, as numbers metrics. ``candidate`` is the latest version that is worth being
promoted; the first one is ``champion`` until another is.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import torch
from torch import Tensor

from persona.bootstrap import SeedsInterval
from persona.comparison import Measured, differences
from persona.edit_format import save_edit
from persona.edits import Edit
from persona.prototypes import PrototypeBank, Refinement, Server, save_bank
from persona.storage import write_json
from persona.wire import MESSAGE_LEVELS
from pipelines import tracking
from pipelines.tracking.registry import CANDIDATE, Registered, hush, publish

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

CHAMPION = "champion"
BANK_TAG = "bank_version"
MODEL_TYPE = "prototype bank"
# Devices whose editing matrices are kept as such, and as rows of the table.
SAMPLED_EDITS, SAMPLED_ROWS = 16, 200


@dataclass(frozen=True)
class Edits:
    """The editing matrices of a few devices.

    Attributes:
        edits: bounded, of the first devices of the table.
        table: a row a device.
    """

    edits: Edit
    table: pl.DataFrame


@dataclass(frozen=True)
class BankVersion:
    """What is registered of a bank.

    Attributes:
        bank: the version.
        server: of the bank.
        description: for people.
        metrics: numbers that versions are compared by.
        tags: whatever else they are compared by.
        edits: see ``sample_edits``.
        figures: by name.
    """

    bank: PrototypeBank
    server: Server
    description: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, Any] = field(default_factory=dict)
    edits: Edits | None = None
    figures: Mapping[str, Figure] = field(default_factory=dict)


@torch.no_grad()
def sample_edits(server: Server, codes: Tensor, names: Sequence[str], unit: str = "user", seed: int = 0) -> Edits:
    """Editing matrices of devices drawn from ``seed``.

    Args:
        server: of the bank.
        codes: (N, L, d) of contexts.
        names: (N,) whose they are.
        unit: what a device is called.
        seed: of the draw.
    """
    rows = torch.randperm(len(codes), generator=torch.Generator().manual_seed(seed))[:SAMPLED_ROWS]
    z, bank = codes[rows], server.bank
    nearest = server.assigner(z)
    unbounded = server.editor.unbounded(z)
    edits = server.editor.bounded(unbounded)
    norms, whole = edits.layer_norms(), edits.norm()
    saturation = torch.stack([server.editor.saturation(unbounded[i]) for i in range(len(rows))])
    layers = [spec.name for spec in bank.prototypes.specs]
    columns: dict[str, Any] = {unit: [names[i] for i in rows.tolist()], "prototype": nearest.prototypes.tolist()}
    columns |= {f"norm {name}": norms[:, i].tolist() for i, name in enumerate(layers)}
    columns |= {f"saturation {name}": saturation[:, i].tolist() for i, name in enumerate(layers)}
    columns |= {"norm": whole.tolist(), "remaining norm": nearest.distances.tolist()}
    return Edits(edits[slice(SAMPLED_EDITS)], pl.DataFrame(columns))


def register_bank(model: str, version: BankVersion, *, candidate: bool = True) -> Registered:
    """Log a bank as a model of the active run and register it, once for every bank version.

    Args:
        model: name of the registered model, for example ``persona-recsys-movielens-small-prototypes``.
        version: what to register.
        candidate: whether it is to be promoted, so that it gets the alias ``candidate``.
    """
    import mlflow

    hush()
    client = mlflow.MlflowClient()
    known = find(client, model, version.bank.version)
    if known is not None:
        if candidate:
            client.set_registered_model_alias(model, CANDIDATE, str(known.version))
        return known
    first = not _exists(client, model)
    logged = mlflow.initialize_logged_model(name="prototypes", model_type=MODEL_TYPE, params=_params(version.bank))
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), version)
        client.log_model_artifacts(logged.model_id, folder)
    mlflow.finalize_logged_model(logged.model_id, "READY")
    if version.edits is not None:
        tracking.log_table(version.edits.table.to_dicts(), "tables/edits.json")
    tags = _tags(client, model, version.bank) | dict(version.tags)
    aliases = [alias for alias, wanted in ((CANDIDATE, candidate), (CHAMPION, first)) if wanted]
    return publish(model, logged.model_id, tags, version.metrics, version.description, aliases)


def find(client: MlflowClient, model: str, bank: str) -> Registered | None:
    """The version of the registry that holds this version of a bank, if there is one."""
    if not bank:
        return None
    for entry in client.search_model_versions(f"name = '{model}' and tags.{BANK_TAG} = '{bank}'"):
        return Registered(model, int(entry.version), f"models:/{model}/{entry.version}")
    return None


def bank_metrics(bank: PrototypeBank, refinement: Refinement | None = None) -> dict[str, float]:
    """What there is to say of any bank in numbers, and of what its refinement moved."""
    shares = bank.members / bank.members.sum().clamp_min(1e-300)
    found = {
        "bank/k": float(len(bank)),
        "bank/members": float(bank.members.sum()),
        "bank/largest_share": float(shares.max()),
        "bank/basis_directions": float(len(bank.basis)),
    }
    if refinement is not None:
        layers = [spec.name for spec in bank.prototypes.specs]
        moved = refinement.movement.amax(0).tolist()
        found |= {f"bank/movement/{name}": value for name, value in zip(layers, moved, strict=True)}
        found |= {"bank/moved_users": float(len(refinement.moved)), "bank/held": float(len(refinement.held))}
    return found


def refinement_tags(bank: PrototypeBank, refinement: Refinement) -> dict[str, str]:
    """What a refinement changed, as text: users that changed prototype, largest movement a layer, splits, retirements."""
    layers = [spec.name for spec in bank.prototypes.specs]
    movement = {name: round(v, 6) for name, v in zip(layers, refinement.movement.amax(0).tolist(), strict=True)}
    return {
        "moved_users": str(len(refinement.moved)),
        "movement": json.dumps(movement),
        "held": json.dumps(refinement.held),
        "split": json.dumps(refinement.split),
        "retired": json.dumps(refinement.retired),
    }


def deltas(new: Measured, old: Measured, prefix: str, metrics: Sequence[str]) -> dict[str, SeedsInterval]:
    """Differences with intervals over units, by names such as ``window/uauc_vs_parent``; none for fewer than two units."""
    if len(new.units) < 2:
        return {}
    found = differences([new], [old])
    return {f"{prefix}/{metric}_vs_{old.method}": found[metric] for metric in metrics if metric in found}


def as_metrics(found: Mapping[str, SeedsInterval]) -> dict[str, float]:
    """Differences as three metrics each: the mean, and with ``_low`` and ``_high`` the 95 % interval."""
    flat: dict[str, float] = {}
    for name, difference in found.items():
        interval = difference.interval
        flat |= {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return flat


def _params(bank: PrototypeBank) -> dict[str, str]:
    kind = str(bank.metadata.get("kind", ""))
    values = {"kind": kind, "k": len(bank), "bound": bank.bound.kind, "tau": bank.bound.tau}
    digests = {"version": bank.version, "parent": bank.parent, "host": bank.host, "editor": bank.editor}
    return {name: str(value) for name, value in (values | digests).items()}


def _tags(client: MlflowClient, model: str, bank: PrototypeBank) -> dict[str, Any]:
    parent = find(client, model, bank.parent)
    return {
        BANK_TAG: bank.version,
        "kind": bank.metadata.get("kind", ""),
        "parent": bank.parent,
        "parent_version": "" if parent is None else parent.version,
        "k": len(bank),
        "members": json.dumps([round(m, 1) for m in bank.members.tolist()]),
        "host_digest": bank.host,
        "editor_digest": bank.editor,
        **tracking.commit_tags(),
    }


def _write(folder: Path, version: BankVersion) -> None:
    """The artifacts of the model; figures are artifacts of its run as well, where its page shows them."""
    import mlflow

    save_bank(folder / "bank", version.bank)
    write_json(folder / "interface.json", _interface(version.server))
    if version.edits is not None:
        save_edit(folder / "edits.safetensors", version.edits.edits)
        version.edits.table.write_parquet(folder / "edits.parquet")
    for name, figure in version.figures.items():
        (folder / "figures").mkdir(exist_ok=True)
        figure.savefig(folder / "figures" / f"{name}.png", dpi=110)
        mlflow.log_artifact(str(folder / "figures" / f"{name}.png"), "figures")


def _interface(server: Server) -> dict[str, Any]:
    """What a signature says of other models."""
    bank = server.bank
    layers, width = server.assigner.metric.shape
    specs = [
        {"name": s.name, "out": s.out_features, "in": s.in_features, "bias": s.bias} for s in bank.prototypes.specs
    ]
    return {
        "input": {"codes": {"dtype": "float32", "shape": ["N", layers, width]}},
        "output": {
            "prototype": {"dtype": "uint8", "shape": ["N"], "values": len(bank)},
            "coefficients": {"dtype": "int8", "shape": ["N", server.coefficients_sent]},
            "edit": {"dtype": "float32", "layers": specs},
        },
        "bytes": {level: server.payload_bytes(level) for level in MESSAGE_LEVELS},
    }


def _exists(client: MlflowClient, model: str) -> bool:
    return bool(client.search_model_versions(f"name = '{model}'", max_results=1))
