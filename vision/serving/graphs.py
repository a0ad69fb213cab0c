"""The compiled graphs of a classifier and its tables, ready to run: what ``vision.serving.compile`` makes, without torch.

Shapes: n images, C channels, H height, W width, F features, K classes, P' coordinates of an edit.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from persona.answering import BIAS, CORE, Contexts
from persona.arrays import arrays_from_bytes, arrays_to_bytes
from persona.cloud import EditTables
from persona.errors import ConfigError
from persona.graphs import open_graph

BODY, HEAD, EDIT, TABLES, FACTORS = (
    "body.onnx",
    "head.onnx",
    "edit.onnx",
    "tables.safetensors",
    "factors.safetensors",
)

Floats = NDArray[np.float32]


class CompiledModel:
    """The graphs of a bundle, each on one thread, and its tables.

    Args:
        files: what ``vision.serving.compile.compile_model`` returned.

    Attributes:
        tables: of the editor, ``None`` if the bundle is a host alone.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._body, self._head = open_graph(files[BODY], BODY), open_graph(files[HEAD], HEAD)
        self._edit = open_graph(files[EDIT], EDIT) if EDIT in files else None
        self.tables = EditTables.from_bytes(files[TABLES]) if TABLES in files else None
        self._factors = arrays_from_bytes(files[FACTORS], FACTORS)[0] if FACTORS in files else {}
        self.edits_features = any(entry.name == "edit" for entry in self._body.get_inputs())

    def features(self, pixels: NDArray[np.uint8], edit: Floats | None = None) -> Floats:
        """(n, C, H, W) under an edit (1, P') -> (n, F); an edit that changes no features need not be given."""
        given = {"images": pixels} | ({"edit": self._whole(edit)} if self.edits_features else {})
        features: Floats = self._body.run(None, given)[0]
        return features

    def logits(self, features: Floats, edit: Floats | None = None) -> Floats:
        """(n, F), computed under the same edit (1, P') -> (n, K)."""
        given = {"features": features} | ({} if self.tables is None else {"edit": self._whole(edit)})
        logits: Floats = self._head.run(None, given)[0]
        return logits

    def contexts(self, features: Floats) -> Contexts:
        """What the editor says of one device from the features (n, F) of the host without an edit.

        Raises:
            ConfigError: the bundle is a host without an editor.
        """
        if self._edit is None:
            raise ConfigError("this bundle is the host alone and makes no edits: release one with an editor")
        [read] = self._edit.get_inputs()
        if read.shape[1] != features.shape[1]:
            features = np.concatenate([features, softmax(self.logits(features))], axis=1)
        return Contexts(*self._edit.run(None, {"context": features}))

    def full_message(self, edit: Floats) -> bytes:
        """(P',) unbounded -> the whole edit in float32, as ``persona.edit_format`` reads it."""
        assert self.tables is not None
        tensors, kinds = {}, {}
        for layer in self.tables.layers:
            weight, bias = edit[layer.start : layer.middle], edit[None, layer.middle : layer.stop]
            name = layer.name.removesuffix(CORE) if layer.name.endswith(CORE) else layer.name.removesuffix(BIAS)
            if layer.name.endswith(CORE):
                kinds[name] = "factored"
                # Tables hold dW^T.
                tensors[f"{name}/core"] = weight.reshape(1, layer.in_features, layer.out_features).transpose(0, 2, 1)
                tensors |= {f"{name}/{side}": self._factors[f"{name}/{side}"] for side in ("u", "v")}
            elif layer.in_features:
                kinds[name] = "dense"
                tensors[f"{name}/weight"] = weight.reshape(1, layer.in_features, layer.out_features)
            if layer.stop > layer.middle:
                tensors[f"{name}/bias"] = bias
        header = {"format": "edit", "version": 1, "host": self.tables.host, "layers": kinds, "precision": "float32"}
        return arrays_to_bytes(tensors, header)

    def _whole(self, edit: Floats | None) -> Floats:
        """The edit that is given, or one that changes nothing."""
        if edit is not None:
            return edit
        assert self.tables is not None
        return np.zeros((1, self.tables.size), dtype=np.float32)


def softmax(logits: Floats) -> Floats:
    """(n, K) logits -> probabilities."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: Floats = shifted / shifted.sum(axis=1, keepdims=True)
    return probabilities
