"""A compiled bundle made by hand: the same graphs and tables as a released one, small enough to be made in no time.

The context is the sum of its items' vectors, s; codes z = tanh(s); edits E(z) = z M + c of one layer; the host ranks by
<s + s W + b, v>. There are 40 items, 4 numbers wide, 3 prototypes and 2 directions.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import safetensors.numpy
from onnx import TensorProto, helper, numpy_helper

from persona.bundles import COMPILED, digests
from persona.storage import digest_json
from recsys.data.columns import ITEM, TITLE
from recsys.serving.graphs import EDIT, RANK, TABLES

ITEMS, WIDTH, LENGTH, PROTOTYPES = 40, 4, 5, 3
SIZE = WIDTH * WIDTH + WIDTH
IDS = [str(100 + i) for i in range(1, ITEMS + 1)]
TITLES = [f"Film {i}" for i in range(1, ITEMS + 1)]
HOST = "ab" * 32


def bank_version(seed: int) -> str:
    return f"{seed:02x}" * 32


def write_bundle(folder: Path, seed: int = 0, *, bank: bool = True, editor: bool = True, poison: bool = False) -> Path:
    """Write a bundle; ``poison`` makes its whole edits, not its prototypes, infinite."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(ITEMS + 1, WIDTH)).astype(np.float32)
    vectors[0] = 0
    columns = rng.normal(scale=0.2, size=(WIDTH, SIZE)).astype(np.float32)
    constant = rng.normal(scale=0.05, size=SIZE).astype(np.float32)
    sent = np.full_like(constant, np.inf) if poison else constant
    files = {RANK: _rank(vectors)}
    if editor:
        files |= {EDIT: _edit(vectors, columns, sent), TABLES: _tables(rng, columns, constant, seed, bank)}
    items: dict[str, Any] = {ITEM: IDS, TITLE: TITLES}
    header = {
        "format": "persona-recsys-bundle",
        "version": 2,
        "host": {"max_length": LENGTH},
        "editor": {} if editor else None,
        "host_digest": HOST,
        "editor_digest": "cd" * 32 if editor else None,
        "info": {},
        "bank_version": bank_version(seed) if bank and editor else None,
        "items_digest": digest_json(items),
        "compiled": digests(files),
    }
    (folder / COMPILED).mkdir(parents=True)
    for name, data in files.items():
        (folder / COMPILED / name).write_bytes(data)
    pl.DataFrame(items).write_parquet(folder / "items.parquet")
    (folder / "bundle.json").write_text(json.dumps(header))
    return folder


def _tables(rng: np.random.Generator, columns: np.ndarray, constant: np.ndarray, seed: int, bank: bool) -> bytes:
    wide = columns.astype(np.float64)
    tensors = {"grams": (wide @ wide.T)[None]}
    if bank:
        offset = np.tanh(rng.normal(size=(PROTOTYPES, WIDTH))) @ wide
        directions = np.linalg.svd(wide)[2][:2]
        tensors |= {
            "prototypes": (offset + constant).astype(np.float32),
            "square": (offset**2).sum(1),
            "projected": wide @ offset.T,
            "directions": directions.astype(np.float32),
            "basis": wide @ directions.T,
            "start": offset @ directions.T,
        }
    about = {
        "parent": "",
        "editor": "cd" * 32,
        "members": [1.0] * PROTOTYPES,
        "origin": [-1] * PROTOTYPES,
        "norms": [1.0] * PROTOTYPES,
        "energy": [0.7, 0.2],
        "metadata": {},
    }
    header = {
        "format": "edit tables",
        "version": 1,
        "host": HOST,
        "bank": bank_version(seed) if bank else "",
        "layers": [["head.0", WIDTH, WIDTH, True]],
        "bound": {"kind": "tanh", "tau": 1.0},
        "scales": [0.5],
        "weight_norm": 2.0,
        "about": about if bank else {},
    }
    data = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    return safetensors.numpy.save(data, metadata={"persona": json.dumps(header)})


def _edit(vectors: np.ndarray, columns: np.ndarray, constant: np.ndarray) -> bytes:
    nodes = [
        *_context(),
        helper.make_node("Tanh", ["sum"], ["z"]),
        helper.make_node("Unsqueeze", ["z", "one"], ["codes"]),
        helper.make_node("MatMul", ["z", "columns"], ["linear"]),
        helper.make_node("Add", ["linear", "constant"], ["unbounded"]),
    ]
    outputs = [_info("codes", ["rows", 1, WIDTH]), _info("unbounded", ["rows", SIZE])]
    return _model(nodes, [], outputs, vectors=vectors, columns=columns, constant=constant)


def _rank(vectors: np.ndarray) -> bytes:
    nodes = [
        *_context(),
        helper.make_node("Split", ["edit", "parts"], ["flat", "bias"], axis=1),
        helper.make_node("Reshape", ["flat", "square"], ["weight"]),
        helper.make_node("Unsqueeze", ["sum", "one"], ["row"]),
        helper.make_node("MatMul", ["row", "weight"], ["moved"]),
        helper.make_node("Squeeze", ["moved", "one"], ["change"]),
        helper.make_node("Sum", ["sum", "change", "bias"], ["user"]),
        helper.make_node("MatMul", ["user", "targets"], ["scores"]),
        helper.make_node("TopK", ["scores", "k"], ["best", "positions"], axis=1),
    ]
    inputs = [_info("edit", ["rows", SIZE]), helper.make_tensor_value_info("k", TensorProto.INT64, [1])]
    outputs = [
        _info("scores", ["rows", ITEMS]),
        _info("best", ["rows", "k"]),
        helper.make_tensor_value_info("positions", TensorProto.INT64, ["rows", "k"]),
    ]
    return _model(
        nodes,
        inputs,
        outputs,
        vectors=vectors,
        targets=np.ascontiguousarray(vectors[1:].T),
        parts=np.array([WIDTH * WIDTH, WIDTH]),
        square=np.array([-1, WIDTH, WIDTH]),
    )


def _context() -> list[Any]:
    """Items -> the sum of their vectors; lengths are read, as a graph has to, but not needed."""
    return [
        helper.make_node("Gather", ["vectors", "items"], ["looked"]),
        helper.make_node("ReduceSum", ["looked", "one"], ["sum"], keepdims=0),
        helper.make_node("Identity", ["lengths"], ["unused"]),
    ]


def _model(nodes: list[Any], inputs: list[Any], outputs: list[Any], **constants: np.ndarray) -> bytes:
    integers = [
        helper.make_tensor_value_info("items", TensorProto.INT64, ["rows", LENGTH]),
        helper.make_tensor_value_info("lengths", TensorProto.INT64, ["rows"]),
    ]
    held = [numpy_helper.from_array(value, name) for name, value in ({"one": np.array([1])} | constants).items()]
    graph = helper.make_graph(nodes, "toy", [*integers, *inputs], outputs, held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    data: bytes = model.SerializeToString()
    return data


def _info(name: str, shape: list[Any]) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
