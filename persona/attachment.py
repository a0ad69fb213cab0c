"""Persona on a module of your own: a host, the names of some of its linear layers, and a context for every row.

    persona = attach(model, ["body.*", "head"], past)            # past (B, T, d): what each device saw last
    persona.fit(batches, nn.functional.mse_loss)                 # batches of (contexts, inputs, targets)
    with persona.applied(persona.edit(past)):
        y = model(x)                                             # one edit a row
    persona.fit_prototypes(past, k=4)
    persona.refine(newer, users)
    persona.save("attached")

The module is the host: its parameters stay fixed, and under a zero edit it answers as before, bit for bit.

Shapes: B rows (one device each), T context length, d context width, L adaptive layers, K prototypes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from persona import prototypes
from persona.adaptive import AdaptiveLayers, linear_layers
from persona.editor import EditorConfig, ParameterEditor
from persona.edits import Edit
from persona.errors import ConfigError, FormatError, MismatchError
from persona.storage import atomic_folder, digest_tensors, holds_other, read_json, write_json
from persona.training.loop import fit
from persona.training.objective import FitConfig, FitResult
from persona.training.plain import Batch, PlainObjective

# What a function makes of a context: (B, T, d), or that and the number (B,) of valid steps, which come first.
Steps = Tensor | tuple[Tensor, Tensor]
Read = Callable[[Any], Steps]

FORMAT, FORMAT_VERSION, HEADER = "attached", 1, "attached.json"


class Attached:
    """A host, its editor, and maybe a prototype bank. Made by ``attach`` and ``Attached.load``.

    Attributes:
        module: the host, whose adaptive layers were made editable in place.
        layers: the adaptive layers.
        editor: of these layers.
        bank: the prototypes, once they were fitted.
    """

    def __init__(self, module: nn.Module, layers: AdaptiveLayers, editor: ParameterEditor, read: Read | None) -> None:
        self.module, self.layers, self.editor = module, layers, editor
        self.bank: prototypes.PrototypeBank | None = None
        self._read_context = read
        self._served: tuple[str, prototypes.Server] | None = None

    def parameters(self) -> Iterator[nn.Parameter]:
        """What is trained, here or in a loop of your own: the editor's parameters."""
        return self.editor.parameters()

    def edit(self, contexts: Any, level: str = "full") -> Edit:
        """The bounded edit of every row, at level ``full`` with its graph, or of the bank: ``prototype``, ``basis``, ``host``.

        Raises:
            ConfigError: unknown level, or no bank yet.
            MismatchError: contexts of another width.
        """
        if level == "full":
            edit: Edit = self.editor(*self._steps(contexts))
            return edit
        return self._server().edit(self.codes(contexts), level)

    def applied(self, edit: Edit) -> AbstractContextManager[None]:
        """Run the module under ``edit`` inside the block.

        Raises:
            MismatchError: an edit for another host.
        """
        edit.check_host(self.editor.host)
        return self.layers.applied(edit)

    def __call__(self, contexts: Any, *inputs: Any) -> Any:
        """What the module makes of ``inputs`` under the edits of their contexts, row by row."""
        with self.applied(self.edit(contexts)):
            return self.module(*inputs)

    def fit(
        self,
        batches: Iterable[Batch],
        loss: Callable[[Any, Any], Tensor],
        *,
        validation: Iterable[Batch] | None = None,
        config: FitConfig | None = None,
        folder: Path | None = None,
    ) -> FitResult:
        """Train the editor, and keep the weights of the epoch that validates best.

        Args:
            batches: of one epoch, each (contexts, inputs, targets); a list or a loader, as every epoch reads it again.
            loss: outputs and targets -> the mean over rows.
            validation: batches that choose the epoch; give some, for without them the training batches do.
            config: length, speed, seed.
            folder: where checkpoints are kept, and resumed from.

        Raises:
            ConfigError: batches that can be read only once, or a loss that is not finite.
        """
        objective = PlainObjective(self, loss, batches, batches if validation is None else validation)
        self.module.eval()
        about = {"host": self.editor.host}
        return fit(self.editor, self.parameters(), objective, config or FitConfig(), folder=folder, about=about)

    @torch.no_grad()
    def codes(self, contexts: Any) -> Tensor:
        """(B, L, width) editing codes: all that prototypes know of a context."""
        return self.editor.codes(*self._steps(contexts))

    def fit_prototypes(self, contexts: Any, k: int, *, seed: int = 0) -> prototypes.PrototypeBank:
        """Group contexts by their edits into ``k`` prototypes, and take that bank.

        Raises:
            ConfigError: ``k`` is out of range.
            DataError: fewer distinct edits than prototypes.
        """
        self.bank = prototypes.fit_bank(self.editor, self.codes(contexts), k, seed=seed).bank
        return self.bank

    def assign(self, contexts: Any) -> Tensor:
        """(B,) the nearest prototype of every context.

        Raises:
            ConfigError: no bank yet.
        """
        return self._server().assign(self.codes(contexts))

    def refine(
        self, contexts: Any, users: Tensor, config: prototypes.RefineConfig | None = None
    ) -> prototypes.Refinement:
        """Move the prototypes with the edits of new contexts, without labels or gradients, and take the new bank.

        ``users`` (N,) are whole numbers from 0 on: whom each of the N contexts belongs to. ``config`` says how far.

        Raises:
            ConfigError: no bank yet.
            DataError: an empty window, or another number of users.
        """
        server, codes = self._server(), self.codes(contexts)
        statistics = prototypes.UserStatistics.collect(codes, users, server.assign(codes), len(server.bank))
        made = prototypes.refine(server.bank, server.assigner.metric, statistics, config)
        self.bank = made.bank
        return made

    def save(self, folder: Path | str) -> None:
        """Write editor and bank into a folder of their own; the host stays yours to keep.

        Raises:
            ConfigError: the folder holds something else.
        """
        folder = Path(folder)
        if holds_other(folder, HEADER):
            raise ConfigError(f"{folder} holds something else, which would be lost: give a new folder")
        bank = None if self.bank is None else self.bank.version
        with atomic_folder(folder) as new:
            self.editor.save(new / "editor")
            if self.bank is not None:
                prototypes.save_bank(new / "bank", self.bank)
            write_json(new / HEADER, {"format": FORMAT, "version": FORMAT_VERSION, "bank": bank})

    @classmethod
    def load(cls, folder: Path | str, module: nn.Module, read: Read | None = None) -> Attached:
        """Attach what ``save`` wrote to the same module, loaded by you.

        Raises:
            FormatError: a file is missing, damaged, or of another release.
            MismatchError: the module is not the host that was saved.
        """
        folder = Path(folder)
        header = read_json(folder / HEADER)
        found = header if isinstance(header, dict) else {}
        if (found.get("format"), found.get("version")) != (FORMAT, FORMAT_VERSION) or "bank" not in found:
            raise FormatError(f"{folder / HEADER} is not of version {FORMAT_VERSION} of this format: save it again")
        editor = ParameterEditor.load(folder / "editor", _digest(module))
        made = cls(_fixed(module), AdaptiveLayers(module, [spec.name for spec in editor.specs]), editor, read)
        editor.to(_device(module))
        if found["bank"] is not None:
            made.bank = prototypes.load_bank(folder / "bank", editor.host)
            if made.bank.version != found["bank"]:
                raise FormatError(f"{folder / 'bank'} is not the bank that was saved with this editor: restore it")
            made._server()
        return made

    def _server(self) -> prototypes.Server:
        if self.bank is None:
            raise ConfigError("there are no prototypes yet: call fit_prototypes(contexts, k) first")
        # What a server is made of takes far longer than an answer; an editor that has been trained since has another digest.
        digest = self.editor.digest()
        if self._served is None or self._served[0] != digest or self._served[1].bank is not self.bank:
            self._served = digest, prototypes.Server(self.editor, self.bank)
        return self._served[1]

    def _steps(self, contexts: Any) -> tuple[Tensor, Tensor]:
        """(B, T, d) and the number (B,) of valid steps."""
        return _checked(contexts, self._read_context, self.editor.config.context_dim)


def attach(
    module: nn.Module,
    layers: str | Sequence[str],
    context: Any,
    read: Read | None = None,
    *,
    seed: int = 0,
    **settings: Any,
) -> Attached:
    """Give a trained module an editor; the module is put in eval mode, and its parameters are fixed.

    Args:
        module: any module with linear layers.
        layers: patterns of their names, as ``["body.*", "head"]``, or ``auto``: the last two.
        context: an example of contexts: a tensor (B, T, d), or a pair of it and the lengths (B,), or what ``read`` reads.
        read: makes such a tensor or pair of whatever your contexts are.
        seed: of the editor's first parameters.
        settings: of ``EditorConfig``: width, transfer, head, rank, bound, tau.

    Raises:
        ConfigError: a pattern names no linear layer that can be edited, or a setting is unknown.
        MismatchError: the context has another shape.
    """
    names = linear_layers(module, [layers] if isinstance(layers, str) else layers)
    steps, _ = _checked(context, read, None)
    config = EditorConfig.from_dict({"context_dim": steps.shape[2], **settings})
    adaptive, host = AdaptiveLayers(module, names), _digest(module)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        editor = ParameterEditor(config, adaptive.specs, adaptive.weight_scales(), host)
    return Attached(_fixed(module), adaptive, editor.to(_device(module)), read)


def _checked(contexts: Any, read: Read | None, width: int | None) -> tuple[Tensor, Tensor]:
    found = contexts if read is None else read(contexts)
    steps, lengths = found if isinstance(found, tuple) else (found, None)
    if not isinstance(steps, Tensor) or steps.ndim != 3 or width not in (None, steps.shape[2]):
        shape = tuple(steps.shape) if isinstance(steps, Tensor) else type(steps).__name__
        raise MismatchError(
            f"contexts have to be a tensor (B, T, {width or 'd'}), but this is {shape}: see attach(read=)"
        )
    if lengths is None:
        lengths = torch.full((len(steps),), steps.shape[1], device=steps.device)
    return steps, lengths


def _fixed(module: nn.Module) -> nn.Module:
    return module.eval().requires_grad_(False)


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def _digest(module: nn.Module) -> str:
    return digest_tensors({name: t for name, t in module.state_dict().items() if isinstance(t, Tensor)})
