"""Fine-tuning for clusters of contexts: adaptive layers of their own for each, the control to prototypes without an editor."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from persona.editor import ParameterEditor
from persona.edits import Edit, LayerSpec
from persona.prototypes import kmeans
from persona.torch_device import moved
from persona.training.objective import FitResult
from recsys.data.batches import Context
from recsys.evaluation import ROWS
from recsys.methods.problem import Problem, Trained
from recsys.personalised import Personalised

CLUSTERS = (4, 16)
BYTES = 1  # devices hold the layers of all clusters, as they hold a bank; a refresh names one


class ClusterLayers(nn.Module):
    """The edit of the cluster that a context is nearest to, by the mean of its items' embeddings.

    Args:
        centres: (K, d_c) of the clusters.
        specs: the adaptive layers.
    """

    def __init__(self, centres: Tensor, specs: tuple[LayerSpec, ...]) -> None:
        super().__init__()
        self.specs = specs
        self.register_buffer("centres", centres)
        self.layers = nn.Parameter(Edit.zeros(specs, len(centres)).flat())

    def forward(self, context: Tensor, lengths: Tensor) -> Edit:
        """(B, T, d_c) embeddings, 0 at padding, and (B,) lengths -> the edits of B devices."""
        nearest = torch.cdist(mean_embedding(context, lengths), self.get_buffer("centres")).argmin(1)
        return Edit.from_flat(self.layers[nearest], self.specs)


def mean_embedding(context: Tensor, lengths: Tensor) -> Tensor:
    """(B, T, d_c), 0 at padding, and (B,) -> (B, d_c)."""
    return context.sum(1) / lengths.clamp_min(1).unsqueeze(1)


def finetune_cluster(problem: Problem) -> Trained:
    """k-means of the contexts before validation; every cluster's layers learn from its share of the later rows."""
    tried = [_train(problem, k) for k in CLUSTERS]
    return max(tried, key=lambda trained: trained.result.best_value)


def _train(problem: Problem, k: int) -> Trained:
    host = problem.base_host()
    generator = ClusterLayers(_centres(problem, Personalised(host), k), host.adaptive.specs)
    # Not an editor, but called like one: embeddings and lengths in, the edits of a batch out.
    model = Personalised(host, cast(ParameterEditor, generator), fixed_host=True)
    rows = problem.held_back.adapt
    result: FitResult = problem.train(f"finetune_cluster_{k}", model, generator.parameters(), rows, keep_start=True)
    return Trained(model, BYTES, result, chosen={"clusters": float(k)})


def training_contexts(problem: Problem, model: Personalised) -> Context:
    """The distinct contexts (N, T) of all rows before validation."""
    items, lengths = problem.data.contexts(problem.everything, model.host.config.max_length)
    distinct = np.unique(np.column_stack([items, lengths]), axis=0)
    return Context(torch.from_numpy(distinct[:, :-1].copy()), torch.from_numpy(distinct[:, -1].copy()))


@torch.no_grad()
def _centres(problem: Problem, model: Personalised, k: int) -> Tensor:
    contexts = training_contexts(problem, model)
    parts = (contexts.index_select(rows) for rows in torch.split(torch.arange(len(contexts)), ROWS))
    points = [
        mean_embedding(model.host.context_features(part), part.lengths).cpu()
        for part in (moved(part, model.host.device) for part in parts)
    ]
    return kmeans(torch.cat(points), k, seed=problem.config.seed).centres.float()
