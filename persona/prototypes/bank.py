"""The prototype bank: K prototype edits of one host, with all that a device needs to use them.

A bank is immutable. Its version is a digest of everything in it, its parent included, so two banks with one version are equal
and a changed one is noticed. Prototypes are unbounded edits; after training or refinement they need not be edits that the
editor's heads can make.

Shapes: K prototypes, L layers, d code width, m basis directions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from persona.bounds import Bound
from persona.edits import Edit
from persona.errors import ConfigError, MismatchError
from persona.prototypes.algebra import linear
from persona.prototypes.basis import EditBasis
from persona.prototypes.metric import HeadMetric
from persona.storage import digest_json, digest_tensors

# A prototype's index travels as one byte.
MAX_PROTOTYPES = 256


@dataclass(frozen=True)
class PrototypeBank:
    """K prototypes of one host and editor.

    Attributes:
        prototypes: unbounded edits, batch K, with the digest of the host.
        centres: (K, L, d) float64 mean codes of the members.
        members: (K,) float64 weight of the contexts that made each prototype.
        origin: (K,) int64 index of the parent's prototype that each continues; -1 where there is none.
        idle: (K,) int64 successive versions in which no context came to a prototype.
        basis: shared directions of remaining edits.
        bound: how an edit is bounded before it is applied.
        weight_scales: (L,) root-mean-square weights of the host's layers, the bound's unit.
        editor: digest of the editor whose edits these are.
        parent: version that this one was made from; empty for the first.
        metadata: what made this version, as JSON values.

    Raises:
        ConfigError: more prototypes than one byte can name, or none.
        MismatchError: parts of different sizes.
    """

    prototypes: Edit
    centres: Tensor
    members: Tensor
    origin: Tensor
    idle: Tensor
    basis: EditBasis
    bound: Bound
    weight_scales: Tensor
    editor: str
    parent: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 1 <= len(self.prototypes) <= MAX_PROTOTYPES:
            raise ConfigError(f"a bank holds 1 to {MAX_PROTOTYPES} prototypes, not {len(self.prototypes)}")
        sizes = {len(self.prototypes), *(len(t) for t in (self.centres, self.members, self.origin, self.idle))}
        if len(sizes) > 1:
            raise MismatchError(f"the parts of a bank have to agree in their number of prototypes, but have {sizes}")
        object.__setattr__(self, "prototypes", linear(self.prototypes))

    def __len__(self) -> int:
        return len(self.prototypes)

    @property
    def host(self) -> str:
        """Digest of the host."""
        return self.prototypes.host

    @cached_property
    def version(self) -> str:
        """SHA-256, in hex, of everything in the bank."""
        return digest_json([digest_tensors(self.tensors()), self.settings()])

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by a name."""
        named = {name: getattr(self, name) for name in ("centres", "members", "origin", "idle", "weight_scales")}
        named["energy"] = self.basis.energy
        for part, edit in (("prototypes", self.prototypes), ("basis", self.basis.directions)):
            for name, layer in edit.layers.items():
                for f in fields(layer):
                    value = getattr(layer, f.name)
                    if value is not None:
                        named[f"{part}/{name}/{f.name}"] = value
        return named

    def settings(self) -> dict[str, Any]:
        """Everything else, as JSON values."""
        return {
            "host": self.host,
            "editor": self.editor,
            "parent": self.parent,
            "bound": {"kind": self.bound.kind, "tau": self.bound.tau},
            "metadata": dict(self.metadata),
        }

    def bounded(self, edit: Edit) -> Edit:
        """Any unbounded edit of this host inside the editor's bound."""
        return self.bound.apply(edit, self.weight_scales)

    def prototype(self, index: int | Tensor) -> Edit:
        """The bounded edit of one prototype (batch 1), or of the prototypes (B,) of B devices."""
        return self.bounded(self.prototypes[index])

    def check(self, metric: HeadMetric) -> None:
        """Refuse another host or editor than the bank was made with.

        Raises:
            MismatchError: one of the digests differs.
        """
        metric.check_owner(self.host, self.editor, f"prototype bank {self.version[:12]}")


def same_prototypes(a: PrototypeBank, b: PrototypeBank) -> bool:
    """Whether two banks hold the same edits, bit for bit."""
    return a.prototypes.specs == b.prototypes.specs and torch.equal(a.prototypes.flat(), b.prototypes.flat())
