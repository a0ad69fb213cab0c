"""The parameter editor: a device's recent data in, an edit of its adaptive layers out, in one forward pass.

    H (B, T, d_c) -> g -> z_0 (B, d) -> transfer -> q (B, L, d) -> z (B, L, d) -> dW_l, db_l -> bound

Formulas: section 2 of the method as published by Lv et al., "Tackling Device Data Distribution Real-time Shift via
Prototype-based Parameter Editing" (MM'25), with one MLP and one head per layer.

Shapes: B devices, T context length, d_c context width, L adaptive layers, d code width.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from persona.bounds import Bound
from persona.edits import DenseEdit, Edit, FactoredEdit, LayerEdit, LayerSpec
from persona.errors import ConfigError, FormatError, MismatchError, PersonaError, check_known
from persona.record import Record
from persona.storage import digest_json, digest_tensors, load_tensors, read_json, save_tensors, write_json
from persona.transfer import TRANSFERS, make_transfer
from persona.wire import BOUNDS

HEADS = ("full", "low_rank")
FORMAT, FORMAT_VERSION = "editor", 1


@dataclass(frozen=True)
class EditorConfig(Record):
    """Settings of a ``ParameterEditor``.

    Attributes:
        context_dim: width d_c of a context embedding.
        width: width d of the codes.
        transfer: cross-layer transfer, ``stacked``, ``recurrent`` or ``none``.
        head: ``full`` matrices, or ``low_rank``: dW = U S V with shared U, V and a generated core S.
        rank: r of the low-rank head.
        bound: ``tanh``, ``clip``, ``frobenius`` or ``none``.
        tau: radius of the bound, in units of the host layer's root-mean-square weight.
        zero_start: heads start at zero, so that an untrained editor returns the host itself. Off only for
            generation, which starts from freshly drawn layers instead.

    Raises:
        ConfigError: a setting is unknown or out of range.
    """

    kind_of_field: ClassVar[str] = "editor setting"

    context_dim: int
    width: int = 32
    transfer: str = "stacked"
    head: str = "full"
    rank: int = 4
    bound: str = "tanh"
    tau: float = 1.0
    zero_start: bool = True

    def __post_init__(self) -> None:
        for name, known in (("transfer", TRANSFERS), ("head", HEADS), ("bound", BOUNDS)):
            check_known(name, getattr(self, name), known)
        for name in ("context_dim", "width", "rank", "tau"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"the editor's {name} is {getattr(self, name)}, but it has to be positive")


class FullHead(nn.Module):
    """dW = reshape(A z + a), db = C z + c for one layer."""

    def __init__(self, spec: LayerSpec, config: EditorConfig) -> None:
        super().__init__()
        self.spec = spec
        self.weight = nn.Linear(config.width, spec.in_features * spec.out_features)
        self.bias = nn.Linear(config.width, spec.out_features) if spec.bias else None
        if config.zero_start:
            _zero(self.weight, self.bias)
        else:
            _start_as_linear(spec, self.weight, self.bias)

    def forward(self, z: Tensor) -> DenseEdit:
        """(B, d) -> the layer's edit for B devices."""
        weight = self.weight(z).reshape(-1, self.spec.in_features, self.spec.out_features)
        return DenseEdit(bias=None if self.bias is None else self.bias(z), weight=weight)

    def generated(self) -> Iterator[nn.Parameter]:
        """The parameters that the edit is linear in."""
        for linear in (self.weight, self.bias):
            yield from () if linear is None else linear.parameters()

    def affine(self) -> tuple[DenseEdit, DenseEdit]:
        """The edits of the d unit codes without the constants (batch d), and the constants (batch 1)."""
        shape = (self.spec.in_features, self.spec.out_features)
        columns, constant = _affine(self.weight)
        bias_columns, bias = (None, None) if self.bias is None else _affine(self.bias)
        return (
            DenseEdit(bias=bias_columns, weight=columns.reshape(-1, *shape)),
            DenseEdit(bias=bias, weight=constant.reshape(-1, *shape)),
        )


class LowRankHead(nn.Module):
    """dW = U S(z) V with shared U (out, r), V (r, in) and a generated core S (r, r): a payload of r^2 numbers."""

    def __init__(self, spec: LayerSpec, config: EditorConfig) -> None:
        super().__init__()
        self.rank = min(config.rank, spec.in_features, spec.out_features)
        self.u = nn.Parameter(nn.init.orthogonal_(torch.empty(spec.out_features, self.rank)))
        self.v = nn.Parameter(nn.init.orthogonal_(torch.empty(self.rank, spec.in_features)))
        self.core = nn.Linear(config.width, self.rank**2)
        self.bias = nn.Linear(config.width, spec.out_features) if spec.bias else None
        if config.zero_start:
            _zero(self.core, self.bias)

    def forward(self, z: Tensor) -> FactoredEdit:
        """(B, d) -> the layer's edit for B devices."""
        core = self.core(z).reshape(-1, self.rank, self.rank)
        return FactoredEdit(bias=None if self.bias is None else self.bias(z), u=self.u, core=core, v=self.v)

    def generated(self) -> Iterator[nn.Parameter]:
        """The parameters that the edit is linear in."""
        for linear in (self.core, self.bias):
            yield from () if linear is None else linear.parameters()

    def affine(self) -> tuple[FactoredEdit, FactoredEdit]:
        """The edits of the d unit codes without the constants (batch d), and the constants (batch 1)."""
        shape = (self.rank, self.rank)
        columns, constant = _affine(self.core)
        bias_columns, bias = (None, None) if self.bias is None else _affine(self.bias)
        u, v = self.u.detach().clone(), self.v.detach().clone()
        return (
            FactoredEdit(bias=bias_columns, u=u, core=columns.reshape(-1, *shape), v=v),
            FactoredEdit(bias=bias, u=u, core=constant.reshape(-1, *shape), v=v),
        )


class ParameterEditor(nn.Module):
    """Emits edits of a host's adaptive layers from the device's context.

    With ``zero_start`` the first gradient reaches only the heads, whose output it is; from the second step on every
    parameter learns.

    Args:
        config: settings.
        specs: the host's adaptive layers, in order.
        weight_scales: (L,) root-mean-square weight of each layer, the unit of the bound.
        host: digest of the host; every edit carries it.

    Example::

        editor = ParameterEditor(EditorConfig(context_dim=32), host.adaptive.specs, host.adaptive.weight_scales())
        edit = editor(host.context_features(context), context.lengths)
    """

    weight_scales: Tensor

    def __init__(
        self, config: EditorConfig, specs: tuple[LayerSpec, ...], weight_scales: Tensor, host: str = ""
    ) -> None:
        super().__init__()
        if not specs:
            raise ConfigError("the host names no adaptive layers: an editor needs at least one")
        d = config.width
        self.config, self.specs, self.host = config, specs, host
        self.bound = Bound(config.bound, config.tau)
        self.register_buffer("weight_scales", weight_scales.detach().clone().float())
        self.context = nn.GRU(config.context_dim, d, batch_first=True)
        self.mlp0 = _mlp(d)
        self.transfer = make_transfer(config.transfer, len(specs), d)
        self.mlps = nn.ModuleList(_mlp(d) for _ in specs)
        head = FullHead if config.head == "full" else LowRankHead
        self.heads = nn.ModuleList(head(spec, config) for spec in specs)

    def summary(self, context: Tensor, lengths: Tensor) -> Tensor:
        """z_0: (B, T, d_c) left-aligned and (B,) lengths -> (B, d). An empty context reads as the zero state."""
        states, _ = self.context(context)
        last = (lengths - 1).clamp_min(0).view(-1, 1, 1).expand(-1, 1, states.shape[2])
        g = states.gather(1, last).squeeze(1)
        return cast(Tensor, self.mlp0(g * (lengths > 0).unsqueeze(1)))

    def codes(self, context: Tensor, lengths: Tensor) -> Tensor:
        """Editing codes z: (B, T, d_c), (B,) -> (B, L, d), entries in (-1, 1)."""
        q = self.transfer(self.summary(context, lengths))
        return torch.stack([torch.tanh(mlp(q[:, i])) for i, mlp in enumerate(self.mlps)], dim=1)

    def unbounded(self, codes: Tensor) -> Edit:
        """The edit before its bound, linear in the codes (B, L, d)."""
        layers: dict[str, LayerEdit] = {
            spec.name: head(codes[:, i]) for i, (spec, head) in enumerate(zip(self.specs, self.heads, strict=True))
        }
        return Edit(layers, self.host)

    def affine(self) -> tuple[Edit, Edit]:
        """The heads as an affine map: E(z)_l = sum_i z_li M_li + c_l for every layer l.

        Returns:
            The columns M, an edit of batch d, and the constants c, an edit of batch 1. Both are copies without gradient.
        """
        columns: dict[str, LayerEdit] = {}
        constants: dict[str, LayerEdit] = {}
        for spec, head in zip(self.specs, self.heads, strict=True):
            columns[spec.name], constants[spec.name] = cast(FullHead | LowRankHead, head).affine()
        return Edit(columns, self.host), Edit(constants, self.host)

    def bounded(self, edit: Edit) -> Edit:
        """Any unbounded edit of this host inside the editor's bound."""
        return self.bound.apply(edit, self.weight_scales)

    @torch.no_grad()
    def centre(self, codes: Tensor) -> Edit:
        """Take the mean edit of codes (N, L, d) out of the heads' constants, and return it (batch 1).

        A host that takes it in (``AdaptiveLayers.add``) is under every edit what it was before, but by itself it is now what it
        was under the mean one.

        Raises:
            ConfigError: edits have a bound, which the mean would have to pass, or heads of low rank, which may not be able to
                express it.
        """
        if self.config.bound != "none" or not all(isinstance(head, FullHead) for head in self.heads):
            raise ConfigError(
                f"the edits of a {self.config.head} head with bound {self.config.bound} cannot be centred: take full heads "
                "without a bound"
            )
        mean = self.unbounded(codes.double().mean(0, keepdim=True).to(self.weight_scales.device, codes.dtype))
        for head, layer in zip(self.heads, mean.layers.values(), strict=True):
            full = cast(FullHead, head)
            full.weight.bias.sub_(layer.dense().weight.flatten())
            if full.bias is not None and layer.bias is not None:
                full.bias.bias.sub_(layer.bias[0])
        return mean

    def scaled(self, share: float) -> ParameterEditor:
        """An editor whose every edit is ``share`` times this one's: heads and radius of the bound shrink alike.

        A gate for where edits are worth less than they look: s tau tanh(E / tau) = (s tau) tanh(s E / (s tau)), and likewise for
        the other bounds. With 0 it returns the host itself.

        Raises:
            ConfigError: the share is negative.
        """
        if share < 0:
            raise ConfigError(f"an edit cannot be scaled by {share}: give a share from 0 up")
        made = copy.deepcopy(self)
        if share:
            made.config = replace(self.config, tau=share * self.config.tau)
            made.bound = Bound(self.bound.kind, share * self.bound.tau)
        with torch.no_grad():
            for head in made.heads:
                for parameter in cast(FullHead | LowRankHead, head).generated():
                    parameter.mul_(share)
        return made

    def saturation(self, edit: Edit) -> Tensor:
        """(L,) share of an unbounded edit's entries that the bound stops."""
        return self.bound.saturation(edit, self.weight_scales)

    def forward(self, context: Tensor, lengths: Tensor) -> Edit:
        """(B, T, d_c) context embeddings and (B,) lengths -> the bounded edit for B devices."""
        return self.bounded(self.unbounded(self.codes(context, lengths)))

    def digest(self) -> str:
        """SHA-256, in hex, of settings, layers, host and weights: what banks belong to."""
        return digest_json(
            [
                self.config.as_dict(),
                [astuple(spec) for spec in self.specs],
                self.host,
                digest_tensors(self.state_dict()),
            ]
        )

    def save(self, folder: Path | str) -> None:
        """Write ``editor.safetensors`` and ``editor.json`` into ``folder``; the JSON file comes last."""
        header = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "host": self.host,
            "digest": self.digest(),
            "config": self.config.as_dict(),
            "layers": [astuple(spec) for spec in self.specs],
        }
        save_tensors(Path(folder) / "editor.safetensors", self.state_dict(), {"host": self.host})
        write_json(Path(folder) / "editor.json", header)

    @classmethod
    def load(cls, folder: Path | str, host: str | None = None) -> ParameterEditor:
        """Read what ``save`` wrote, in eval mode; ``host`` is the digest of the host that it is wanted for.

        Raises:
            FormatError: a file is missing, damaged, exchanged, or of another release.
            MismatchError: the editor was made for another host.
        """
        path = Path(folder) / "editor.json"
        header = read_json(path)
        found = header if isinstance(header, dict) else {}
        if (found.get("format"), found.get("version")) != (FORMAT, FORMAT_VERSION):
            raise FormatError(
                f"{path} has format {found.get('format')!r} version {found.get('version')!r}, but {FORMAT!r} version "
                f"{FORMAT_VERSION} is needed: save the editor again with this release"
            )
        tensors, _ = load_tensors(Path(folder) / "editor.safetensors")
        try:
            config = EditorConfig.from_dict(found["config"])
            specs = tuple(LayerSpec(*layer) for layer in found["layers"])
            made = cls(config, specs, tensors["weight_scales"], found["host"])
            made.load_state_dict(tensors)
            whole = made.digest() == found["digest"]
        except (KeyError, TypeError, ValueError, RuntimeError, PersonaError) as error:
            raise FormatError(
                f"the editor in {folder} lacks a part or mixes two editors ({error}): restore it"
            ) from error
        if not whole:
            raise FormatError(f"the editor in {folder} was changed or damaged after it was saved: restore it")
        if host is not None and made.host != host:
            raise MismatchError(
                f"the editor in {folder} was made for the host {made.host[:12] or '(none)'}, not for {host[:12]}: load the "
                "host that it was trained with, or train an editor for this one"
            )
        return made.eval()


def _mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))


def _affine(linear: nn.Linear) -> tuple[Tensor, Tensor]:
    """Copies of a linear layer's columns (in, out) and constant (1, out)."""
    return linear.weight.detach().T.clone(), linear.bias.detach().clone().unsqueeze(0)


def _zero(*linears: nn.Linear | None) -> None:
    for linear in linears:
        if linear is not None:
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)


def _start_as_linear(spec: LayerSpec, weight: nn.Linear, bias: nn.Linear | None) -> None:
    """Constants drawn as nn.Linear draws its own weights, and a dependence on the code a tenth as large."""
    limit = spec.in_features**-0.5
    for head in (weight, bias):
        if head is not None:
            nn.init.uniform_(head.bias, -limit, limit)
            nn.init.normal_(head.weight, std=0.1 * limit)
