"""A host whose item table is sharded by TorchRec is the same host (here in a process group of one)."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torchrec import EmbeddingCollection
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

from recsys.data.batches import Batch
from recsys.hosts import Host
from recsys.hosts.base import TABLE
from tests.recsys.hosts.common import HISTORIES, candidates, context, small_host

RATE = 0.5


class Dense(nn.Module):
    """All of a training step but the lookup; a pipeline does not trace modules without a sharded table."""

    def __init__(self, host: Host) -> None:
        super().__init__()
        self.host = [host]  # not a child: the host holds the table

    def forward(self, history, lengths, targets):
        (host,) = self.host
        logits = host.match(host.encode_history(history, lengths), host.project_targets(targets))
        return nn.functional.softplus(-logits).mean(), logits.detach()


class Trained(nn.Module):
    def __init__(self, host: Host) -> None:
        super().__init__()
        self.host, self.dense = host, Dense(host)

    def forward(self, batch):
        history, lengths, targets = self.host.lookup(batch.features)
        return self.dense(history, lengths, targets)


@pytest.fixture
def group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def shard(host: Host, group) -> DistributedModelParallel:
    apply_optimizer_in_backward(torch.optim.SGD, host.embedding.parameters(), {"lr": RATE})
    model, sharders = Trained(host), [EmbeddingCollectionSharder()]
    planner = EmbeddingShardingPlanner(
        topology=Topology(world_size=1, compute_device="cpu"),
        constraints={TABLE: ParameterConstraints(sharding_types=["row_wise"])},
    )
    plan = planner.collective_plan(model, sharders, group)
    return DistributedModelParallel(model, device=torch.device("cpu"), plan=plan, sharders=sharders)


@pytest.mark.parametrize("kind", ["din", "gru4rec", "sasrec"])
def test_a_sharded_host_scores_and_trains_alike(kind, group):
    plain = small_host(kind, "paper")
    host = copy.deepcopy(plain)
    model = shard(host, group)
    assert not isinstance(host.embedding, EmbeddingCollection)
    batch = Batch(context(), candidates())
    assert torch.equal(host(batch.features), plain(batch.features))
    assert torch.equal(host.score(host.encode(batch.context), batch.candidates), scored(plain, batch))

    dense = torch.optim.SGD([p for n, p in model.named_parameters() if "embedding" not in n], RATE)
    pipeline = TrainPipelineSparseDist(model, dense, torch.device("cpu"), execute_all_batches=True)
    batches = iter([Batch(context(), candidates(len(HISTORIES), seed=s)) for s in range(4)])
    sharded = [pipeline.progress(batches) for _ in range(4)]

    optimiser = torch.optim.SGD(plain.parameters(), RATE)
    for step, logits in enumerate(sharded):
        expected = plain(Batch(context(), candidates(len(HISTORIES), seed=step)).features)
        torch.testing.assert_close(logits, expected.detach(), rtol=1e-4, atol=1e-5)
        optimiser.zero_grad()
        nn.functional.softplus(-expected).mean().backward()
        optimiser.step()
    assert not torch.allclose(scored(plain, batch), scored(small_host(kind, "paper"), batch), atol=1e-2)


def scored(host: Host, batch: Batch) -> torch.Tensor:
    return host.score(host.encode(batch.context), batch.candidates)
