"""What answers are made with, compiled once at release: ONNX graphs and the edit tables.

    body.onnx            images -> features; under an edit, where that changes them
    head.onnx            features, edit -> logits
    edit.onnx            what the editor reads of recent images -> codes, unbounded edit
    tables.safetensors   levels, bounds and prototypes (see ``persona.cloud``)
    factors.safetensors  bases of the layers that edits change at a low rank (see ``persona.coordinates``)

Between the graphs stands the choice of the level, so that an edit is judged before it is used. ``vision.serving.classifier`` runs
them, without torch. Where norms are adaptive the body runs twice, without the edit for the context and then under it.

Shapes: n images, C channels, H height, W width, F features, K classes, L layers, d code width, P' coordinates of an edit.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from persona.compiling import compile_graph
from persona.coordinates import Coordinates
from persona.editor import ParameterEditor
from persona.edits import Edit
from persona.errors import ConfigError
from persona.prototypes import PrototypeBank
from persona.prototypes.tables import edit_tables
from persona.storage import tensors_to_bytes
from vision.hosts import Host
from vision.personalised import Personalised
from vision.serving.graphs import BODY, EDIT, FACTORS, HEAD, TABLES

_EXAMPLE_ROWS = 3  # more than one, so that their number stays free


class _Body(nn.Module):
    """Images (n, C, H, W) uint8, edit (1, P') where that changes features -> features (n, F)."""

    def __init__(self, host: Host, coordinates: Coordinates | None) -> None:
        super().__init__()
        self.host, self.coordinates = host, coordinates

    def forward(self, images: Tensor, edit: Tensor | None = None) -> Tensor:
        with self.host.adaptive.applied(_edit(self.coordinates, edit)), self.host.norms.applied(1):
            features: Tensor = self.host.body(self.host.scaled(images))
        return features


class _Head(nn.Module):
    """Features (n, F), edit (1, P') -> logits (n, K)."""

    def __init__(self, host: Host, coordinates: Coordinates | None) -> None:
        super().__init__()
        self.host, self.coordinates = host, coordinates

    def forward(self, features: Tensor, edit: Tensor | None = None) -> Tensor:
        return self.host.classify(features, _edit(self.coordinates, edit))


class _Editing(nn.Module):
    """Features, and beliefs where they are read, of recent images (n, F + K) -> codes (1, L, d), unbounded edit (1, P')."""

    def __init__(self, model: Personalised, coordinates: Coordinates) -> None:
        super().__init__()
        self.reader, self.editor, self.coordinates = model.reader, model.editor, coordinates

    def forward(self, context: Tensor) -> tuple[Tensor, Tensor]:
        assert self.reader is not None
        assert self.editor is not None
        codes = self.editor.codes(*self.reader(context.unsqueeze(0)))
        return codes, self.coordinates.of(self.editor.unbounded(codes))


def compile_model(
    model: Personalised, image_shape: tuple[int, int, int], bank: PrototypeBank | None = None
) -> dict[str, bytes]:
    """The compiled files by name; those of the editor only where there is one. Takes some seconds.

    Args:
        model: host, reader and editor.
        image_shape: (C, H, W).
        bank: prototypes of this host and editor.

    Raises:
        ConfigError: this host or editor cannot be compiled.
        MismatchError: the bank was made with another host or editor.
    """
    model = model.eval()
    try:
        return _compiled(model, image_shape, bank)
    except (torch.onnx.OnnxExporterError, torch._dynamo.exc.UserError) as error:
        raise ConfigError(
            f"a {model.host.config.kind} host with the context {getattr(model.reader, 'kind', 'none')!r} cannot be compiled, "
            f"and so not be released ({str(error).splitlines()[0]}): choose another --context or --host"
        ) from error


def _compiled(model: Personalised, image_shape: tuple[int, int, int], bank: PrototypeBank | None) -> dict[str, bytes]:
    host, reader, editor = model.host, model.reader, model.editor
    images = torch.zeros(_EXAMPLE_ROWS, *image_shape, dtype=torch.uint8)
    features = torch.zeros(_EXAMPLE_ROWS, host.feature_dim)
    coordinates = None if editor is None else Coordinates(editor, bank)
    edit = {} if coordinates is None else {"edit": torch.zeros(1, coordinates.size)}
    of_body = {} if host.shared_features else edit
    body = compile_graph(_Body(host, coordinates), {"images": images, **of_body}, ["features"], ["images"])
    head = compile_graph(_Head(host, coordinates), {"features": features, **edit}, ["logits"], ["features"])
    files = {BODY: body.SerializeToString(), HEAD: head.SerializeToString()}
    if editor is not None and reader is not None and coordinates is not None:
        read = host.context_dim if reader.reads_beliefs else host.feature_dim
        context = torch.full((_EXAMPLE_ROWS, read), 0.5)
        editing = compile_graph(_Editing(model, coordinates), {"context": context}, ["codes", "unbounded"], ["context"])
        factors = tensors_to_bytes(coordinates.factors(), {"host": editor.host})
        files |= {EDIT: editing.SerializeToString(), FACTORS: factors, TABLES: edit_tables(editor, bank, coordinates)}
    return files


def with_tables(files: dict[str, bytes], editor: ParameterEditor, bank: PrototypeBank) -> dict[str, bytes] | None:
    """The compiled files with another bank; ``None`` where its edits have other coordinates than the graphs read.

    Raises:
        MismatchError: the bank was made with another host or editor.
    """
    coordinates = Coordinates(editor, bank)
    if tensors_to_bytes(coordinates.factors(), {"host": editor.host}) != files[FACTORS]:
        return None
    return files | {TABLES: edit_tables(editor, bank, coordinates)}


def _edit(coordinates: Coordinates | None, edit: Tensor | None) -> Edit | None:
    return None if edit is None or coordinates is None else coordinates.edit(edit, written_out=True)
