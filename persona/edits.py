"""Edits: batched, per-device changes of a host's adaptive layers.

An edit holds, for every adaptive layer, a matrix dW and a vector db for each of B devices. Edits form a vector space (add,
subtract, scale, average), are applied to activations in one batched product, and travel as safetensors together with the
digest of the host they belong to.

Two representations of dW, both stored transposed, as the product x dW^T wants them:

* dense: ``weight`` (B, in, out);
* factored: dW = U S V with ``u`` (out, r), ``v`` (r, in), shared or per device, and a core ``s`` (B, r, r).

Shapes: B devices, L layers, r rank, P parameters of one device's edit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional

from persona.errors import MismatchError


@dataclass(frozen=True)
class LayerSpec:
    """Name and shape of an adaptive layer."""

    name: str
    out_features: int
    in_features: int
    bias: bool = True

    @property
    def parameters(self) -> int:
        """Entries of a full edit of this layer."""
        return self.out_features * (self.in_features + int(self.bias))


@dataclass(frozen=True)
class LayerEdit(ABC):
    """The edit of one layer for B devices; ``bias`` is (B, out), or ``None`` where the layer has no bias."""

    bias: Tensor | None

    @property
    @abstractmethod
    def batch_size(self) -> int:
        """B."""

    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(out, in) of the edited layer."""

    @abstractmethod
    def dense(self) -> DenseEdit:
        """The same edit with dW written out."""

    @abstractmethod
    def map(self, function: Callable[[Tensor], Tensor]) -> LayerEdit:
        """Apply ``function`` to every per-device tensor (leading dimension B)."""

    @abstractmethod
    def weight_square_norm(self) -> Tensor:
        """(B,) squared Frobenius norm of dW."""

    @abstractmethod
    def delta(self, x: Tensor) -> Tensor:
        """(B, M, in) -> (B, M, out): x dW^T without the bias."""

    @abstractmethod
    def scale_weight(self, factor: Tensor) -> LayerEdit:
        """Multiply dW, not db, by ``factor`` (B,)."""

    def scaled(self, factor: float) -> LayerEdit:
        """Multiply dW and db by one number, in their own type and place."""
        return self.map(lambda t: t * factor)

    def square_norm(self) -> Tensor:
        """(B,) squared norm of dW and db together."""
        square = self.weight_square_norm()
        return square if self.bias is None else square + self.bias.square().sum(-1)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The edited layer: x (W + dW)^T + b + db.

        Args:
            x: (B, ..., in); any leading dimension if the edit has batch 1.
            weight: (out, in), the host's own W.
            bias: (out,), the host's own b.

        Returns:
            (B, ..., out). A zero edit gives the host's output bit for bit.

        Raises:
            MismatchError: the leading dimension of x is not the edit's batch size.
        """
        if self.batch_size == 1:
            edited = weight + self.dense().weight[0].T
            return functional.linear(x, edited, _edited_bias(bias, self.bias))
        if x.shape[0] != self.batch_size:
            raise MismatchError(
                f"the edit is for {self.batch_size} devices, but the input has {x.shape[0]} rows: "
                "give one edit a row, or a single edit for all"
            )
        # Host first, then the change: only so does a zero edit leave every bit as it was.
        rows = x.reshape(x.shape[0], -1, x.shape[-1])
        change = self.delta(rows)
        if self.bias is not None:
            change = change + self.bias.unsqueeze(1)
        return functional.linear(x, weight, bias) + change.reshape(*x.shape[:-1], weight.shape[0])


@dataclass(frozen=True)
class DenseEdit(LayerEdit):
    """dW written out: ``weight`` (B, in, out)."""

    weight: Tensor

    @property
    def batch_size(self) -> int:
        """B."""
        return self.weight.shape[0]

    def shape(self) -> tuple[int, int]:
        """(out, in) of the edited layer."""
        return self.weight.shape[2], self.weight.shape[1]

    def dense(self) -> DenseEdit:
        """This edit itself."""
        return self

    def map(self, function: Callable[[Tensor], Tensor]) -> DenseEdit:
        """Apply ``function`` to weight and bias."""
        return DenseEdit(bias=None if self.bias is None else function(self.bias), weight=function(self.weight))

    def weight_square_norm(self) -> Tensor:
        """(B,) squared Frobenius norm of dW."""
        return self.weight.square().sum((1, 2))

    def delta(self, x: Tensor) -> Tensor:
        """(B, M, in) -> (B, M, out)."""
        return torch.bmm(x, self.weight)

    def scale_weight(self, factor: Tensor) -> DenseEdit:
        """Multiply dW by ``factor`` (B,)."""
        return replace(self, weight=self.weight * factor[:, None, None])

    def low_rank(self, rank: int) -> FactoredEdit:
        """The nearest dW of rank at most ``rank`` in Frobenius norm (truncated singular value decomposition)."""
        v, s, u = torch.linalg.svd(self.weight, full_matrices=False)  # weight is dW^T = V^T S U^T
        rank = min(rank, s.shape[1])
        return FactoredEdit(
            bias=self.bias,
            u=u[:, :rank].transpose(1, 2).contiguous(),
            core=torch.diag_embed(s[:, :rank]),
            v=v[:, :, :rank].transpose(1, 2).contiguous(),
        )


@dataclass(frozen=True)
class FactoredEdit(LayerEdit):
    """dW = U S V: ``u`` (out, r) or (B, out, r), ``core`` (B, r, r), ``v`` (r, in) or (B, r, in)."""

    u: Tensor
    core: Tensor
    v: Tensor

    @property
    def batch_size(self) -> int:
        """B."""
        return self.core.shape[0]

    @property
    def shared_factors(self) -> bool:
        """Whether all devices share U and V, so that only the core differs."""
        return self.u.ndim == 2 and self.v.ndim == 2

    def same_factors(self, other: FactoredEdit) -> bool:
        """Whether both edits move the layer in one shared pair of subspaces, so that adding cores adds edits."""
        shared = self.shared_factors and other.shared_factors
        return shared and torch.equal(self.u, other.u) and torch.equal(self.v, other.v)

    def shape(self) -> tuple[int, int]:
        """(out, in) of the edited layer."""
        return self.u.shape[-2], self.v.shape[-1]

    def dense(self) -> DenseEdit:
        """The same edit with dW written out."""
        return DenseEdit(bias=self.bias, weight=(self.u @ self.core @ self.v).transpose(1, 2))

    def map(self, function: Callable[[Tensor], Tensor]) -> FactoredEdit:
        """Apply ``function`` to core and bias, and to factors that differ between devices."""
        return FactoredEdit(
            bias=None if self.bias is None else function(self.bias),
            u=function(self.u) if self.u.ndim == 3 else self.u,
            core=function(self.core),
            v=function(self.v) if self.v.ndim == 3 else self.v,
        )

    def weight_square_norm(self) -> Tensor:
        """(B,) squared Frobenius norm: tr(S^T (U^T U) S (V V^T)), without writing dW out."""
        inner = (self.u.mT @ self.u) @ self.core @ (self.v @ self.v.mT)
        return (self.core * inner).sum((1, 2))

    def delta(self, x: Tensor) -> Tensor:
        """(B, M, in) -> (B, M, out)."""
        return x @ self.v.mT @ self.core.mT @ self.u.mT

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """As ``LayerEdit.linear``; for few rows of one device dW is not written out, which would cost more than they do."""
        rows, (out, inner) = x.numel() // x.shape[-1], self.shape()
        if self.batch_size > 1 or rows * (inner + out) > inner * out:
            return super().linear(x, weight, bias)
        u, v = (factor if factor.ndim == 2 else factor[0] for factor in (self.u, self.v))
        flat = x.reshape(rows, inner)
        # The host's sum comes first, and the change is added to it by the product: no other matrix of this size is made.
        plain = functional.linear(flat, weight, _edited_bias(bias, self.bias))
        return plain.addmm_(flat @ v.T @ self.core[0].T, u.T).reshape(*x.shape[:-1], out)

    def scale_weight(self, factor: Tensor) -> FactoredEdit:
        """Multiply dW by ``factor`` (B,)."""
        return replace(self, core=self.core * factor[:, None, None])

    def scaled(self, factor: float) -> FactoredEdit:
        """Multiply dW and db by one number; of the factors the core alone."""
        return replace(self, bias=None if self.bias is None else self.bias * factor, core=self.core * factor)


def _edited_bias(bias: Tensor | None, change: Tensor | None) -> Tensor | None:
    """The sum b + db of one device, where the layer has a bias."""
    return bias if bias is None or change is None else bias + change[0]


def _add(a: LayerEdit, b: LayerEdit) -> LayerEdit:
    bias = None if a.bias is None or b.bias is None else a.bias + b.bias
    if isinstance(a, FactoredEdit) and isinstance(b, FactoredEdit) and a.same_factors(b):
        return FactoredEdit(bias=bias, u=a.u, core=a.core + b.core, v=a.v)
    return DenseEdit(bias=bias, weight=a.dense().weight + b.dense().weight)


@dataclass(frozen=True)
class Edit:
    """Edits of all adaptive layers for B devices, with the digest of the host they were made for.

    Example::

        total = prototype + remaining          # compose
        remaining = total - prototype          # what is left to change
        scores = host.score(state, candidates, edit=total)
    """

    layers: Mapping[str, LayerEdit]
    host: str = field(default="")

    @classmethod
    def zeros(cls, specs: Iterable[LayerSpec], batch: int = 1, host: str = "", like: Tensor | None = None) -> Edit:
        """The edit that changes nothing, for ``batch`` devices; in type and place of ``like``, float32 on the CPU without it."""
        like = torch.zeros(0) if like is None else like
        return cls(
            {
                s.name: DenseEdit(
                    bias=like.new_zeros(batch, s.out_features) if s.bias else None,
                    weight=like.new_zeros(batch, s.in_features, s.out_features),
                )
                for s in specs
            },
            host,
        )

    @classmethod
    def from_flat(cls, flat: Tensor, specs: Iterable[LayerSpec], host: str = "") -> Edit:
        """Inverse of ``flat``: (B, P) -> dense edit."""
        specs = tuple(specs)
        needed = sum(s.parameters for s in specs)
        if needed != flat.shape[1]:
            raise MismatchError(f"a flat edit of these layers has {needed} numbers, but {flat.shape[1]} were given")
        layers: dict[str, LayerEdit] = {}
        start = 0
        for s in specs:
            size = s.in_features * s.out_features
            weight = flat[:, start : start + size].reshape(-1, s.in_features, s.out_features)
            start += size
            bias = flat[:, start : start + s.out_features] if s.bias else None
            start += s.out_features if s.bias else 0
            layers[s.name] = DenseEdit(bias=bias, weight=weight)
        return cls(layers, host)

    @classmethod
    def cat(cls, edits: Iterable[Edit]) -> Edit:
        """The devices of several edits of one host, one after the other (dense)."""
        parts = list(edits)
        for part in parts[1:]:
            parts[0]._check(part)
        flat = torch.cat([part.flat() for part in parts])
        return cls.from_flat(flat, parts[0].specs, parts[0].host)

    @property
    def specs(self) -> tuple[LayerSpec, ...]:
        """Names and shapes of the edited layers, in order."""
        return tuple(LayerSpec(name, *layer.shape(), layer.bias is not None) for name, layer in self.layers.items())

    @property
    def batch_size(self) -> int:
        """B."""
        return next(iter(self.layers.values())).batch_size

    def __len__(self) -> int:
        return self.batch_size

    def map(self, function: Callable[[Tensor], Tensor]) -> Edit:
        """Apply ``function`` to every per-device tensor (leading dimension B)."""
        return Edit({name: layer.map(function) for name, layer in self.layers.items()}, self.host)

    def __getitem__(self, index: int | slice | Tensor) -> Edit:
        """Some of the devices: an index keeps the batch dimension, ``edit[2]`` has batch 1."""
        if isinstance(index, int):
            index = slice(index, index + 1 or None)
        return self.map(lambda t: t[index])

    def expand(self, batch: int) -> Edit:
        """An edit of batch 1, repeated for ``batch`` devices without copying."""
        return self.map(lambda t: t.expand(batch, *t.shape[1:]))

    def dense(self) -> Edit:
        """The same edit with every dW written out."""
        return Edit({name: layer.dense() for name, layer in self.layers.items()}, self.host)

    def detach(self) -> Edit:
        """The same numbers, cut off from the graph."""
        return self.map(Tensor.detach)

    def __add__(self, other: Edit) -> Edit:
        """Compose two edits: first one, then the other on top. Batch 1 broadcasts."""
        self._check(other)
        return Edit({name: _add(layer, other.layers[name]) for name, layer in self.layers.items()}, self.host)

    def __sub__(self, other: Edit) -> Edit:
        """What this edit changes beyond ``other``: the remaining edit if ``other`` is a prototype."""
        return self + other * -1.0

    def __mul__(self, factor: float) -> Edit:
        """Scale dW and db."""
        return Edit({name: layer.scaled(factor) for name, layer in self.layers.items()}, self.host)

    def layer_norms(self) -> Tensor:
        """(B, L) Frobenius norm of every layer's dW and db together."""
        return torch.stack([layer.square_norm() for layer in self.layers.values()], dim=1).clamp_min(0).sqrt()

    def norm(self) -> Tensor:
        """(B,) Frobenius norm over all layers, weights and biases."""
        return self.layer_norms().square().sum(1).sqrt()

    def is_finite(self) -> Tensor:
        """(B,) whether every entry of a device's edit is a finite number."""
        return torch.isfinite(self.flat()).all(dim=1)

    def flat(self) -> Tensor:
        """(B, P) all entries of a device in one row: per layer dW^T, then db."""
        parts = []
        for layer in self.layers.values():
            dense = layer.dense()
            parts.append(dense.weight.flatten(1))
            if dense.bias is not None:
                parts.append(dense.bias)
        return torch.cat(parts, dim=1)

    def mean(self) -> Edit:
        """The mean over devices, batch 1 (dense unless all devices share their factors)."""
        shared = all(not isinstance(layer, FactoredEdit) or layer.shared_factors for layer in self.layers.values())
        return (self if shared else self.dense()).map(lambda t: t.mean(0, keepdim=True))

    def low_rank(self, rank: int) -> Edit:
        """The nearest edit whose dW have rank at most ``rank``; biases stay as they are."""
        return Edit({name: layer.dense().low_rank(rank) for name, layer in self.layers.items()}, self.host)

    def check_host(self, digest: str) -> None:
        """Refuse to be used on another host.

        Raises:
            MismatchError: the edit was made for a host with another digest.
        """
        if self.host != digest:
            raise MismatchError(
                f"this edit was made for the host {self.host[:12] or '(none)'}, not for {digest[:12]}: "
                "ask the editor of this host version for a new edit"
            )

    def _check(self, other: Edit) -> None:
        if self.specs != other.specs:
            raise MismatchError("these two edits have different layers, so they cannot be combined")
        if self.host != other.host:
            raise MismatchError(
                f"these two edits belong to different hosts ({self.host[:12]} and {other.host[:12]}), "
                "so they cannot be combined"
            )
