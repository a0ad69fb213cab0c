#!/usr/bin/env bash
# torch.onnx.export(dynamo=True) writes a stack trace into every node of the graph: absolute paths of the exporting machine's
# source files, home directories included, travel with each model file. verbose=False, optimize=True and a bare module change
# nothing, and the file stays that way when saved, optimised or served.
#
# Seen with torch 2.14.1, onnx 1.23.2, onnxscript 0.7.2 (CPU, Python 3.11):
#   nodes with a stack trace: 2 of 2
#   a trace names the module's own file: True
#   bytes of the graph 2.4 times those without what the exporter noted
# Mend: clear metadata_props of nodes, graph and model before a graph is published.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 onnx==1.23.2 onnxscript==0.7.2 numpy==2.4.6
cat > "$work/model.py" <<'PY'
import warnings

import torch

warnings.simplefilter("ignore")


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 4)

    def forward(self, x):
        return torch.tanh(self.linear(x))


graph = torch.onnx.export(Model().eval(), (torch.ones(2, 3),), dynamo=True, verbose=False, optimize=True).model_proto
traces = [p.value for node in graph.graph.node for p in node.metadata_props if p.key.endswith("stack_trace")]
before = len(graph.SerializeToString())
for holder in (graph, graph.graph, *graph.graph.node):
    del holder.metadata_props[:]
print(f"nodes with a stack trace: {len(traces)} of {len(graph.graph.node)}")
print(f"a trace names the module's own file: {any(__file__ in trace for trace in traces)}")
print(f"bytes of the graph {before / len(graph.SerializeToString()):.1f} times those without what the exporter noted")
assert len(traces) == len(graph.graph.node) > 0
assert any(__file__ in trace for trace in traces)
PY
"$work/venv/bin/python" "$work/model.py"
