"""Layers that hosts are built from.

Shapes: B rows, T positions, C candidates, d width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from persona.training.ranks import Dropout
from recsys.data.batches import valid_positions


def tower(dim: int) -> nn.Sequential:
    """Two layers, d -> d tanh -> d: linear at "0" and "2"."""
    return nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, dim))


class ResidualTower(nn.Sequential):
    """x + tower(x), near the identity at the start: linear at "0" and "2", as in ``tower``."""

    def __init__(self, dim: int) -> None:
        super().__init__(*tower(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., d)."""
        found = x
        for layer in self:
            found = layer(found)
        return x + found


def tanh_layer(dim: int) -> nn.Sequential:
    """One layer, d -> d tanh."""
    return nn.Sequential(nn.Linear(dim, dim), nn.Tanh())


class TargetAttention(nn.Module):
    """Attention of targets on a history, with bias-free d x d maps (the interest layer of DIN, Zhou et al., KDD'18).

    Keys and values depend on the history alone, so they are computed once (``read``) and asked for any targets.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)

    def read(self, history: Tensor) -> tuple[Tensor, Tensor]:
        """History (B, T, d) -> keys and values (B, T, d) each."""
        return self.key(history), self.value(history)

    def forward(self, targets: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """What the targets find in the history.

        Args:
            targets: (B, C, d), or (C, d) shared by all rows.
            keys: (B, T, d).
            values: (B, T, d).
            mask: (B, T) bool, True at valid positions.

        Returns:
            (B, C, d), zero for a row without a valid position.
        """
        scale = keys.shape[-1] ** -0.5
        logits = (self.query(targets) * scale) @ keys.transpose(1, 2)
        # The least finite number, not -inf: a row without history stays free of NaN, in its gradient too.
        weights = logits.masked_fill(~mask.unsqueeze(1), torch.finfo(logits.dtype).min).softmax(dim=-1)
        found: Tensor = weights @ (values * mask.unsqueeze(-1))
        return found


class EncoderBlock(nn.Module):
    """Causal self-attention and a feed-forward layer, each with a residual.

    Causal masking alone keeps padding on the right away from every valid position, so no padding mask is needed; what
    stands at padded positions is of no use. Dropout acts on both residuals, not inside attention and feed-forward layer,
    where its masks would take longer than the layers themselves.

    Args:
        dim: d.
        heads: attention heads.
        feed_forward: width of the feed-forward layer.
        dropout: share of dropped activations in training.
        pre_norm: normalise before each layer, else after each residual.
    """

    def __init__(self, dim: int, heads: int, feed_forward: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.heads, self.pre_norm = heads, pre_norm
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.output = nn.Linear(dim, dim)
        self.feed_forward = nn.Sequential(nn.Linear(dim, feed_forward), nn.ReLU(), nn.Linear(feed_forward, dim))
        self.norms = nn.ModuleList([nn.LayerNorm(dim), nn.LayerNorm(dim)])
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, d) -> (B, T, d)."""
        source = self._before(0, x)
        return self._finish(x, self._attend(source, source, None))

    def last(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, d) and lengths (B,) -> (B, d): ``forward`` at the last valid position only, for T times less work.

        A row of length 0 is read as if its first position were valid.
        """
        lengths = lengths.clamp(min=1)
        source = self._before(0, x)
        mask = valid_positions(lengths, x.shape[1])
        attended = self._attend(last_valid(source, lengths).unsqueeze(1), source, mask[:, None, None])
        return self._finish(last_valid(x, lengths), attended.squeeze(1))

    def _before(self, index: int, x: Tensor) -> Tensor:
        return self.norms[index](x) if self.pre_norm else x

    def _after(self, index: int, x: Tensor) -> Tensor:
        return x if self.pre_norm else self.norms[index](x)

    def _finish(self, x: Tensor, attended: Tensor) -> Tensor:
        x = self._after(0, x + self.dropout(attended))
        return self._after(1, x + self.dropout(self.feed_forward(self._before(1, x))))

    def _attend(self, asking: Tensor, source: Tensor, mask: Tensor | None) -> Tensor:
        """(B, M, d) asks (B, T, d): causally where ``mask`` is None, else where ``mask`` (B, 1, 1, T) is True."""
        rows, positions, dim = source.shape
        query = self.query(asking).view(rows, -1, self.heads, dim // self.heads).transpose(1, 2)
        # (B, T, 2 d) -> 2 x (B, heads, T, d / heads)
        key, value = self.key_value(source).view(rows, positions, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None)
        attended: Tensor = self.output(mixed.transpose(1, 2).reshape(asking.shape))
        return attended


def last_valid(x: Tensor, lengths: Tensor) -> Tensor:
    """(B, T, d) and lengths (B,) from 1 -> (B, d) at the last valid position."""
    last = (lengths - 1).view(-1, 1, 1).expand(-1, 1, x.shape[2])
    return x.gather(1, last).squeeze(1)
