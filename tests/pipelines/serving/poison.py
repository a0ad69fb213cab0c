"""Bundles whose whole edits do harm, though their codes and prototypes are sound."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from persona.bundles import COMPILED, digests

GRAPH = "edit.onnx"


def poisoned(bundle: Path, folder: Path, value: float) -> Path:
    """A copy of a bundle that adds ``value`` to every entry of its unbounded edits."""
    shutil.copytree(bundle, folder)
    path = folder / COMPILED / GRAPH
    model = onnx.load(path)
    for node in model.graph.node:
        for i, name in enumerate(node.output):
            if name == "unbounded":
                node.output[i] = "sound"
    model.graph.initializer.append(numpy_helper.from_array(np.array([value], dtype=np.float32), "poison"))
    model.graph.node.append(helper.make_node("Add", ["sound", "poison"], ["unbounded"]))
    onnx.save(model, path)
    header = json.loads((folder / "bundle.json").read_text())
    header["compiled"] |= digests({GRAPH: path.read_bytes()})
    (folder / "bundle.json").write_text(json.dumps(header))
    return folder
