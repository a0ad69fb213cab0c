"""What TorchRec costs: training rows a second of SASRec on an EmbeddingCollection and on a plain nn.Embedding.

Both hosts start from the same parameters and see the same batches; a step is everything from dense contexts to updated
parameters, so TorchRec pays for its jagged tensors too. Steps alternate, so that both sides meet the same machine load.

    python -m benchmarks.embedding
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

from persona import runtime

runtime.configure(threads=1)
runtime.keep_freed_memory()  # as training does

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from recsys.data.batches import Context, features  # noqa: E402
from recsys.hosts import Host, HostConfig, make_host  # noqa: E402

CANDIDATES = 5


class PlainHost(nn.Module):
    """The same host, with its table as a plain nn.Embedding that reads padded ids."""

    def __init__(self, host: Host) -> None:
        super().__init__()
        self.host = host
        self.table = nn.Embedding.from_pretrained(host.embedding.embeddings["item"].weight.detach(), freeze=False)
        del host.embedding

    def forward(self, context: Context, candidates: Tensor) -> Tensor:
        """Logits (B, C)."""
        state = self.host.encode_history(self.table(context.items), context.lengths)
        return self.host.match(state, self.host.project_targets(self.table(candidates)))


def batches(config: HostConfig, rows: int, count: int) -> list[tuple[Context, Tensor]]:
    """Histories of uniform lengths with zipf-like items, and candidates (B, C)."""
    generator = torch.Generator().manual_seed(0)
    weights = 1.0 / torch.arange(1, config.n_items + 1)
    made = []
    for _ in range(count):
        lengths = torch.randint(1, config.max_length + 1, (rows,), generator=generator)
        drawn = 1 + torch.multinomial(weights, rows * config.max_length, replacement=True, generator=generator)
        items = drawn.view(rows, config.max_length)
        items = items * (torch.arange(config.max_length) < lengths.unsqueeze(1))
        candidates = torch.randint(1, config.n_items + 1, (rows, CANDIDATES), generator=generator)
        made.append((Context(items, lengths), candidates))
    return made


def stepper(model: nn.Module, score: Callable[[Context, Tensor], Tensor]) -> Callable[[Context, Tensor], float]:
    """A training step (binary cross-entropy, Adam) that returns its seconds."""
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)

    def step(context: Context, candidates: Tensor) -> float:
        labels = torch.zeros(candidates.shape)
        labels[:, 0] = 1.0
        start = time.perf_counter()
        optimiser.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(score(context, candidates), labels).backward()
        optimiser.step()
        return time.perf_counter() - start

    return step


def measure(preset: str, items: int, rows: int, steps: int) -> dict[str, float | int | str]:
    """Alternate ``steps`` pairs of steps; ratio above 1 means that TorchRec is faster."""
    config = HostConfig.preset("sasrec", preset, items)
    torch.manual_seed(0)
    host = make_host(config)
    torch.manual_seed(0)
    plain = PlainHost(make_host(config))
    torchrec_step = stepper(host, lambda context, candidates: host(features(context, candidates)))
    plain_step = stepper(plain, plain)
    made = batches(config, rows, 4)
    seconds: list[tuple[float, float]] = []
    for number in range(steps + 2):
        batch = made[number % len(made)]
        # Whoever goes first warms the caches for the other: take turns.
        if number % 2:
            pair = torchrec_step(*batch), plain_step(*batch)
        else:
            pair = (plain_step(*batch), torchrec_step(*batch))[::-1]
        seconds.append(pair)
    torchrec_seconds, plain_seconds = zip(*seconds[2:], strict=True)
    return {
        "preset": preset,
        "items": items,
        "rows": rows,
        "steps": steps,
        "torchrec_rows_per_second": round(rows / statistics.median(torchrec_seconds)),
        "plain_rows_per_second": round(rows / statistics.median(plain_seconds)),
        "ratio": round(statistics.median(b / a for a, b in seconds[2:]), 3),
    }


def main() -> None:
    """Measure both presets and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=1024, help="batch size")
    parser.add_argument("--steps", type=int, default=40, help="measured pairs of steps a preset")
    settings = parser.parse_args()
    results = [measure(preset, settings.items, settings.rows, settings.steps) for preset in ("paper", "modern")]
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
