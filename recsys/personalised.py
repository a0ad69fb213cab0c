"""A host with its parameter editor: what is trained, evaluated and served.

Shapes: B rows (devices), T context length, C candidates, V items.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchrec import KeyedJaggedTensor

from persona.editor import ParameterEditor
from persona.edits import Edit
from persona.errors import ConfigError
from persona.torch_device import moved
from persona.training.ranks import draw
from recsys.data.batches import Context
from recsys.hosts import Host, SequentialHost
from recsys.hosts.sequential import UserState

# Contexts that the editor reads at once.
CODED_ROWS = 1024


class Personalised(nn.Module):
    """A host whose adaptive layers are edited by what its device sees; without an editor, the host itself.

    Args:
        host: the host.
        editor: reads the host's context features; ``None`` for the host alone. It is brought to where the host lies.
        edit_dropout: share of training rows whose edit is switched off, so that the host alone stays good while both
            learn together.
        fixed_host: keep the host in evaluation mode (no dropout) while the editor learns.
    """

    def __init__(
        self,
        host: Host,
        editor: ParameterEditor | None = None,
        *,
        edit_dropout: float = 0.0,
        fixed_host: bool = False,
    ) -> None:
        super().__init__()
        self.host, self.editor = host, None if editor is None else editor.to(host.device)
        self.edit_dropout, self.fixed_host = edit_dropout, fixed_host

    def train(self, mode: bool = True) -> Personalised:
        """Training or evaluation mode; a fixed host stays in evaluation mode."""
        super().train(mode)
        self.host.train(mode and not self.fixed_host)
        return self

    def scaled(self, share: float, host: Host | None = None) -> Personalised:
        """This model with ``share`` of its edits, over its own host or another one, which stays as it is."""
        assert self.editor is not None
        editor = self.editor.scaled(share)
        if host is not None:
            editor.host = host.digest()
        return Personalised(host or self.host, editor, fixed_host=True).eval()

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        """Logits (B, C) of a batch's features, with one lookup: the training path."""
        with torch.set_grad_enabled(
            torch.is_grad_enabled() and not self.fixed_host
        ):  # a sharded table learns by itself
            embedded = self.host.lookup(features)
        return self.respond(*embedded)

    def respond(self, history: Tensor, lengths: Tensor, targets: Tensor) -> Tensor:
        """Logits (B, C) of what ``host.lookup`` returned: all of ``forward`` but the lookup."""
        edit = None if self.editor is None else self._drop(self.editor(history, lengths))
        state = self.host.encode_history(history, lengths)
        with self.host.adaptive.applied(edit):
            return self.host.match(state, self.host.project_targets(targets))

    def edit(self, context: Context) -> Edit | None:
        """The edit for every row of a context, in one forward pass of the editor; ``None`` without an editor."""
        if self.editor is None:
            return None
        edit: Edit = self.editor(self.host.context_features(context), context.lengths)
        return edit

    def user_vectors(self, context: Context) -> Tensor:
        """(B, d) vectors whose dot products with the items' are the logits, of a host that scores so.

        Trains a host without a sharded table, or an editor over it.
        """
        host = self.host
        assert isinstance(host, SequentialHost)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.fixed_host):
            state = host.encode(context)
        edit = self.edit(context)
        assert isinstance(state, UserState)
        return host.user_vectors(state.users, None if edit is None else self._drop(edit))

    @torch.no_grad()
    def codes(self, context: Context) -> Tensor:
        """(B, L, d) editing codes of a context of any number of rows, without gradient, on the CPU, where banks are made.

        Raises:
            ConfigError: there is no editor.
        """
        if self.editor is None:
            raise ConfigError("codes are an editor's, but this model is a host without one")
        context = moved(context, self.host.device)
        rows = torch.split(torch.arange(len(context), device=self.host.device), CODED_ROWS)
        blocks = map(context.index_select, rows)
        codes = [self.editor.codes(self.host.context_features(block), block.lengths) for block in blocks]
        return torch.cat(codes).cpu()

    def score(self, context: Context, candidates: Tensor) -> Tensor:
        """Logits (B, C) of ``candidates`` (B, C)."""
        return self.host.score(self.host.encode(context), candidates, self.edit(context))

    def score_catalogue(self, context: Context, item_vectors: Tensor | None = None) -> Tensor:
        """Logits (B, V + 1); column 0, the padding, is -inf."""
        state = self.host.encode(context)
        return self.host.score_catalogue(state, self.edit(context), item_vectors=item_vectors)

    def _drop(self, edit: Edit) -> Edit:
        if not self.training or self.edit_dropout == 0.0:
            return edit
        keep = (draw(torch.rand, edit.batch_size) >= self.edit_dropout).float().to(self.host.device)
        return edit.map(lambda t: t * keep.reshape(-1, *[1] * (t.ndim - 1)))
