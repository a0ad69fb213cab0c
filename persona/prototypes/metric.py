"""The head metric: distances between edits, measured between codes.

Before its bound an edit is affine in the codes, E(z)_l = M_l z_l + c_l. With the Gram matrices G_l = M_l^T M_l

    ||E(z) - E(z')||_F^2 = sum_l (z_l - z'_l)^T G_l (z_l - z'_l),

over all layers, weights and biases, so that edits are compared, clustered and averaged without being written out. A root
R_l with R_l^T R_l = G_l makes the metric Euclidean: ||E(z) - E(z')|| = ||R z - R z'||.

Everything is computed in float64. Shapes: N codes, K edits, L layers, d code width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from persona.editor import ParameterEditor
from persona.edits import Edit, LayerEdit
from persona.errors import MismatchError, check_known
from persona.prototypes.algebra import inner, to_dtype
from persona.torch_device import on_cpu

SPACES = ("edits", "codes")
# Codes brought to float64 at once.
CHUNK = 1 << 12


def editor_digest(editor: ParameterEditor) -> str:
    """Digest of an editor's settings, layers and weights."""
    return editor.digest()


class HeadMetric:
    """A snapshot of an editor's heads, on the CPU: later training of the editor does not change it.

    Attributes:
        columns: M, an edit of batch d (float64).
        constant: c, an edit of batch 1 (float64).
        grams: (L, d, d) G.
        roots: (L, d, d) R.
        weight_norm: Frobenius norm of the host's own adaptive weights, a unit for distances.
        host: digest of the host.
        editor: digest of the editor.

    Example::

        metric = HeadMetric(editor)
        points = metric.points(codes)          # Euclidean distances between points are those between edits
    """

    def __init__(self, editor: ParameterEditor) -> None:
        editor = on_cpu(editor)
        columns, constant = editor.affine()
        self.columns, self.constant = to_dtype(columns, torch.float64), to_dtype(constant, torch.float64)
        self.specs, self.bound, self.weight_scales = editor.specs, editor.bound, editor.weight_scales.clone()
        self.host, self.editor = editor.host, editor_digest(editor)
        self.grams = inner(self.columns, self.columns).permute(2, 0, 1).contiguous()
        self.roots = roots(self.grams)
        entries = torch.tensor([s.in_features * s.out_features for s in editor.specs])
        self.weight_norm = float((self.weight_scales.double().square().cpu() * entries).sum().sqrt())

    @property
    def shape(self) -> tuple[int, int]:
        """(L, d) of one device's codes."""
        return self.grams.shape[0], self.grams.shape[1]

    def check_codes(self, codes: Tensor) -> None:
        """Refuse codes that are not (N, L, d).

        Raises:
            MismatchError: another number of layers or another width.
        """
        if codes.ndim != 3 or codes.shape[1:] != self.shape:
            layers, width = self.shape
            raise MismatchError(
                f"this editor's codes have the shape (N, {layers}, {width}), but these have {tuple(codes.shape)}: "
                "give the codes of the same editor"
            )

    def check_owner(self, host: str, editor: str, what: str) -> None:
        """Refuse an artifact made with another host or editor.

        Raises:
            MismatchError: one of the digests differs.
        """
        for name, theirs, ours in (("host", host, self.host), ("editor", editor, self.editor)):
            if theirs != ours:
                raise MismatchError(
                    f"{what} was made with the {name} {theirs[:12] or '(none)'}, but this editor has the {name} "
                    f"{ours[:12] or '(none)'}: use both from the same release"
                )

    def shift(self, codes: Tensor) -> Edit:
        """(N, L, d) -> M z, the edit without its constant (float64)."""
        codes = codes.detach().double()
        layers: dict[str, LayerEdit] = {}
        for i, (name, layer) in enumerate(self.columns.layers.items()):
            weights = codes[:, i]
            layers[name] = layer.map(lambda t, w=weights: torch.tensordot(w, t, 1))  # type: ignore[misc]
        return Edit(layers, self.host)

    def edits(self, codes: Tensor) -> Edit:
        """(N, L, d) -> the unbounded edits M z + c (float64)."""
        return self.shift(codes) + self.constant.expand(len(codes))

    def points(self, codes: Tensor, space: str = "edits") -> Tensor:
        """(N, L, d) -> (N, L d) points, in the codes' own precision.

        Args:
            codes: of this editor.
            space: ``edits``: distances between points are distances between unbounded edits; ``codes``: the codes
                themselves.

        Raises:
            ConfigError: unknown space.
            MismatchError: codes of another editor.
        """
        self.check_codes(codes)
        check_known("space", space, SPACES)
        if space == "codes":
            return codes.detach().flatten(1)
        points = torch.empty(len(codes), self.grams.shape[0] * self.grams.shape[1], dtype=codes.dtype)
        points = points.to(codes.device)
        for start in range(0, len(codes), CHUNK):
            rows = slice(start, start + CHUNK)
            points[rows] = (
                torch.einsum("lij,nlj->nli", self.roots, codes[rows].detach().double()).flatten(1).to(codes.dtype)
            )
        return points

    def square_norms(self, codes: Tensor) -> Tensor:
        """(N, L, d) -> (N, L) squared norms of M_l z_l."""
        z = codes.detach().double()
        return (torch.einsum("nli,lij->nlj", z, self.grams) * z).sum(-1).clamp_min(0)

    def energies(self, codes: Tensor) -> Tensor:
        """(N, L, d) -> (N,) squared norms of the unbounded edits M z + c."""
        along = torch.einsum("nli,li->n", codes.detach().double(), self.project(self.constant)[0])
        constant = inner(self.constant, self.constant).sum()
        return (self.square_norms(codes).sum(1) + 2 * along + constant).clamp_min(0)

    def project(self, edit: Edit) -> Tensor:
        """M^T P for K edits of any kind: (K, L, d), the inner products with the columns of every layer."""
        return inner(edit, self.columns).permute(0, 2, 1).contiguous()

    def nearest_codes(self, edit: Edit) -> Tensor:
        """(K, L, d) shortest codes whose edits come nearest to K edits of any kind: G^+ M^T (P - c)."""
        projected = self.project(edit) - self.project(self.constant)
        inverse = torch.linalg.pinv(self.grams, rtol=1e-12, hermitian=True)
        return torch.einsum("lij,klj->kli", inverse, projected)


def roots(grams: Tensor) -> Tensor:
    """(..., n, n) positive semi-definite G -> R with R^T R = G, of the same shape."""
    values, vectors = torch.linalg.eigh(grams)
    root: Tensor = values.clamp_min(0).sqrt().unsqueeze(-1) * vectors.mT
    return root
