"""A host with its parameter editor: what is trained, evaluated and served.

Shapes: B devices, n images of a device, C channels, H height, W width, F features, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from persona.editor import EditorConfig, FullHead, ParameterEditor
from persona.edits import Edit
from persona.torch_device import moved
from vision.contexts import ContextReader
from vision.evaluation import Window
from vision.hosts import Host


class Personalised(nn.Module):
    """A host whose adaptive layers are edited by what its device sees; without an editor, the host itself.

    Args:
        host: the host.
        reader: turns features into what the editor reads; ``None`` for the host alone.
        editor: from the reader's tokens to edits; ``None`` for the host alone. It and the reader are brought to where the host lies.
        edit_dropout: share of training devices whose edit is switched off, so that the host alone stays good while both
            learn together.
        fixed_host: keep the host in evaluation mode (running statistics, no dropout) while the editor learns.
        fixed_body: keep the host's body in evaluation mode, where only its classifier learns.
    """

    def __init__(
        self,
        host: Host,
        reader: ContextReader | None = None,
        editor: ParameterEditor | None = None,
        *,
        edit_dropout: float = 0.0,
        fixed_host: bool = False,
        fixed_body: bool = False,
    ) -> None:
        super().__init__()
        self.host = host
        self.reader = None if reader is None else reader.to(host.device)
        self.editor = None if editor is None else editor.to(host.device)
        self.edit_dropout, self.fixed_host, self.fixed_body = edit_dropout, fixed_host, fixed_body

    def train(self, mode: bool = True) -> Personalised:
        """Training or evaluation mode; a fixed host stays in evaluation mode."""
        super().train(mode)
        self.host.train(mode and not self.fixed_host)
        self.host.body.train(mode and not (self.fixed_host or self.fixed_body))
        return self

    @property
    def reads_features(self) -> bool:
        """Whether all that learns comes after the features, so that these can be computed once."""
        return self.fixed_body or (self.fixed_host and self.host.shared_features)

    def scaled(self, share: float, host: Host | None = None) -> Personalised:
        """This model with ``share`` of its edits, over its own host or another one, which stays as it is."""
        assert self.editor is not None
        editor = self.editor.scaled(share)
        if host is not None:
            editor.host = host.digest()
        return Personalised(host or self.host, self.reader, editor, fixed_host=True).eval()

    def forward(self, images: Tensor | None, features: Tensor | None = None) -> Tensor:
        """Logits (B, n, K) of devices' images (B, n, C, H, W), each device under the edit that its images ask for.

        Args:
            images: may be ``None`` where the features are given and no edit changes them.
            features: (B, n, F) of the host without an edit, if they are known already.
        """
        if features is None:
            assert images is not None
            features = self.host.features(images)
        edit = self.edit(features)
        if edit is not None:
            edit = self._drop(edit)
        if edit is None or self.host.shared_features:
            return self.host.classify(features, edit)
        assert images is not None
        logits: Tensor = self.host(images, edit)
        return logits

    def edit(self, features: Tensor) -> Edit | None:
        """The edit for every device from features (B, n, F), in one forward pass of the editor; ``None`` without one."""
        if self.editor is None or self.reader is None:
            return None
        edit: Edit = self.editor(*self._tokens(features))
        return edit

    def codes(self, features: Tensor) -> Tensor:
        """The editing codes (B, L, d) of devices from features (B, n, F), on the CPU, where banks are made."""
        assert self.editor is not None
        return self.editor.codes(*self._tokens(moved(features, self.host.device))).cpu()

    def _tokens(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """What the editor reads of features (B, n, F): tokens (B, T, d_c) and their number (B,)."""
        assert self.reader is not None
        tokens: tuple[Tensor, Tensor] = self.reader(
            self.host.context_features(features) if self.reader.reads_beliefs else features
        )
        return tokens

    def start(self, device: int) -> None:
        """Nothing is remembered of a device: a window is all that the editor reads."""

    @torch.no_grad()
    def predict(self, window: Window) -> Tensor:
        """Logits (m, K) of the newest images of a window."""
        if self.editor is None:
            if window.features is not None:
                return self.host.classify(window.features[-window.new :])
            logits: Tensor = self.host(window.images[-window.new :])
            return logits
        known = window.features
        features = (self.host.features(window.images) if known is None else known).unsqueeze(0)
        edit = self.edit(features)
        if self.host.shared_features:
            return self.host.classify(features[:, -window.new :], edit)[0]
        edited: Tensor = self.host(window.images[-window.new :].unsqueeze(0), edit)
        return edited[0]

    def _drop(self, edit: Edit) -> Edit:
        if not self.training or self.edit_dropout == 0.0:
            return edit
        keep = (torch.rand(edit.batch_size) >= self.edit_dropout).float().to(self.host.device)
        return edit.map(lambda t: t * keep.reshape(-1, *[1] * (t.ndim - 1)))


def make_editor(host: Host, config: EditorConfig) -> ParameterEditor:
    """An untrained editor of ``host``.

    Low-rank factors of a layer with a single input, as the norms are, would hold as many numbers as its matrix and only
    one of them would be generated: such a layer has a full head.
    """
    editor = ParameterEditor(config, host.adaptive.specs, host.weight_scales())
    for i, spec in enumerate(host.adaptive.specs):
        if spec.in_features == 1:
            editor.heads[i] = FullHead(spec, config)
    return editor
